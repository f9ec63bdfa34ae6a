"""A RUN that several processes write: its parts, their union, and what becomes of both."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from evalkit.storage.columns import table_of
from evalkit.storage.rows import Batch, Cell, Score
from evalkit.storage.run_folder import finished_cells, read_provenance, read_run
from evalkit.study.execute import Rows
from evalkit.study.plan import Unit
from evalkit.study.store import Store

METHODS, DAMPINGS = ("sgd", "ief"), (1e-12, 1e-3)
CHECKPOINTS = [("step-1", 1, 0.5), ("step-2", 2, 1.0)]
BATCHES = 3


def provenance() -> dict:
    return {
        "settings": {"methods": list(METHODS), "dampings": list(DAMPINGS), "batches": BATCHES},
        "checkpoints": [
            dict(zip(("name", "step", "progress"), one, strict=True)) for one in CHECKPOINTS
        ],
        "finished": None,
        "seconds": None,
    }


def units() -> list[Unit]:
    pairs = frozenset(itertools.product(METHODS, DAMPINGS))
    cells = [Cell(*one, batch) for one in CHECKPOINTS for batch in range(BATCHES)]
    return [Unit(cell, pairs) for cell in cells]


def rows_of(unit: Unit) -> Rows:
    """Return rows that depend on the unit alone."""
    draw = random.Random(f"{unit.cell}")
    scores = [
        Score(method, damping, *(draw.random() for _ in range(7)), None, None, None, None, 0.0, "f")
        for method, damping in itertools.product(METHODS, DAMPINGS)
        if (method, damping) in unit.pairs
    ]
    batch = Batch(8, *(draw.random() for _ in range(5)), 8, f"{unit.cell.batch:064}")
    keys = [table_of([unit.cell] * len(rows), Cell) for rows in (scores, [batch])]
    return Rows({**keys[0], **table_of(scores, Score)}, {**keys[1], **table_of([batch], Batch)})


def store(run: Path, writer: str | None = None) -> Store:
    return Store(run, provenance(), writer, lambda: None)


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def write_alone(run: Path) -> dict[str, bytes]:
    with store(run) as one:
        for unit in units():
            one.put(unit, rows_of(unit))
        one.close(1.0)
    return tables(run)


def tables(run: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(run).items() if name.endswith(".csv")}


def test_parts_become_the_tables_of_one_process(tmp_path: Path) -> None:
    whole = write_alone(tmp_path / "whole")
    run = tmp_path / "run"
    several = [store(run, name) for name in ("rank-0001", "rank-0000")]
    for number, unit in enumerate(units()):
        several[number % 2].put(unit, rows_of(unit))
        assert len(finished_cells(run)) == number + 1
    several[0].close(1.0)
    assert (run / "parts").is_dir()
    assert len(read_run(run).scores) == 24
    several[1].close(1.0)
    assert tables(run) == whole
    assert read_provenance(run)["finished"] is not None
    assert sorted(path.name for path in run.iterdir()) == ["batches.csv", "run.json", "scores.csv"]
