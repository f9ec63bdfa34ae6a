"""The plan of a study lists what is left, checkpoint by checkpoint, the same at every start."""

from __future__ import annotations

import itertools
from pathlib import Path

from evalkit.checkpoints import Checkpoint
from evalkit.settings import Settings
from evalkit.study.plan import cells_of, plan

SETTINGS = Settings(methods=("sgd", "ef"), dampings=(1e-12, 1e-3), batches=3)
PAIRS = set(itertools.product(SETTINGS.methods, SETTINGS.dampings))
CHECKPOINTS = [
    Checkpoint(name, Path(name), step, None, step / 2, "") for step, name in enumerate("abc")
]


def test_a_new_study_has_every_batch_of_a_checkpoint_in_a_row() -> None:
    units = plan(cells_of(CHECKPOINTS, 3), SETTINGS, {})
    places = [(unit.cell.checkpoint, unit.cell.batch) for unit in units]
    assert places == list(itertools.product("abc", range(3)))
    assert all(unit.pairs == PAIRS and unit.is_new for unit in units)
    assert units[3].cell.step == 1
    assert units[3].cell.progress == 0.5


def test_what_is_finished_is_left_out_and_what_is_lost_is_not() -> None:
    lost = ("ef", 1e-3)
    finished = {("a", batch): PAIRS for batch in range(3)} | {("b", 1): PAIRS - {lost}}
    units = plan(cells_of(CHECKPOINTS, 3), SETTINGS, finished)
    assert [(unit.cell.checkpoint, unit.cell.batch) for unit in units[:3]] == [
        ("b", 0),
        ("b", 1),
        ("b", 2),
    ]
    assert units[1].pairs == {lost}
    assert [unit.is_new for unit in units[:3]] == [True, False, True]
    assert plan(cells_of(CHECKPOINTS, 3), SETTINGS, finished) == units
    assert not plan(cells_of(CHECKPOINTS[:1], 3), SETTINGS, finished)
