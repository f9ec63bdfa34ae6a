"""Studies of optimizers, in small: tuning, seeds, scores, and what the report says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from evalkit.storage.files import make_folder
from evalkit.tasks import load_task
from evalkit.training import optimizers
from tests.studies import __main__ as command
from tests.studies import report, study
from tests.studies.studies import STUDIES
from tests.studies.study import Candidate, Study

TINY = Study(
    name="tiny",
    task="digits-mlp",
    candidates=(
        Candidate("sgd", (0.1, 1.0)),
        Candidate("adam", (1e-3,)),
        Candidate("adamw", (1e30,)),
    ),
    epochs=1,
    seeds=2,
    batches=1,
    scored_batch_size=16,
    scored_seeds=1,
    reference="sgd",
    published={"adam": "56.3 ± 0.22"},
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(STUDIES, "tiny", TINY)
    monkeypatch.setattr(report, "_draw", lambda run, folder: None)
    monkeypatch.setattr(report, "write_comparison", lambda found, folder: make_folder(folder))
    arguments = ["tiny", "--work", str(tmp_path / "work"), "--reports", str(tmp_path / "reports")]
    command.main(arguments)
    return tmp_path


def test_a_study_in_small(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny / "reports" / "tiny"
    grid = pd.read_csv(folder / "grid.csv")
    of_sgd = grid[grid["optimizer"] == "sgd"]
    assert len(of_sgd) >= 3  # the best of 0.1 and 1 lies at an end
    [chosen] = of_sgd[of_sgd["chosen"]].to_dict("records")
    assert chosen["final_loss"] == of_sgd["final_loss"].min()
    trainings = sorted(path.name for path in (tiny / "work").glob("tiny/epochs-1/trainings/*"))
    rate = f"{chosen['learning_rate']:.3g}"
    done = ["adam-0.001-0", "adam-0.001-1", f"sgd-{rate}-0", f"sgd-{rate}-1"]
    assert trainings == [*done[:2], "adamw-1e+30-0", "adamw-1e+30-1", *done[2:]]
    text = (folder / "report.md").read_text()
    assert "| Adam | 0.001 | 2 |" in text
    assert "56.3 ± 0.22" in text
    assert f"**{rate}: " in text
    assert "adamw, seed 0: expected a finite loss" in text
    assert f"seed {study.TUNING_SEED}" in text

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("what is done is not done again")

    monkeypatch.setattr("torch.optim.SGD.step", refused)
    monkeypatch.setattr("torch.optim.Adam.step", refused)
    monkeypatch.setitem(STUDIES, "tiny", replace(TINY, candidates=TINY.candidates[:2]))
    command.main(["tiny", "--work", str(tiny / "work"), "--reports", str(tiny / "reports")])
    again = (folder / "report.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("| SGD | ")] == [
        line for line in again.splitlines() if line.startswith("| SGD | ")
    ]


@pytest.mark.parametrize("name", STUDIES)
def test_studies_are_of_tasks_and_optimizers_that_there_are(name: str) -> None:
    one = STUDIES[name]
    assert load_task(one.task, dict(one.settings)).recipe
    for candidate in one.candidates:
        rates = candidate.rates
        assert list(rates) == sorted(rates)
        optimizers.get(candidate.optimizer)
    assert study.TUNING_SEED not in range(one.seeds)
