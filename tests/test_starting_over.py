"""A run that is started over, and how a start that does not fit says what differs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit.cli import main
from evalkit.storage import locks
from evalkit.storage.set_aside import set_aside
from tests.support.drawn_units import rows_of, store, units
from tests.support.refusals import refusal
from tests.support.small_studies import SMALL, study, task_on, tensors

OVER = "or start over with `fresh`, which keeps this run under another name"


def test_a_run_is_kept_under_the_next_free_name(tmp_path: Path) -> None:
    first = study(tmp_path)
    (tmp_path / "run" / "report.html").write_text("a page")
    (tmp_path / "run.1").write_text("taken")
    notes: list[str] = []
    study(tmp_path, fresh=True, on_start=lambda start: notes.extend(start.notes))
    assert f"the earlier run is kept in '{tmp_path / 'run.2'}'" in notes
    kept = sorted(path.name for path in (tmp_path / "run.2").iterdir())
    assert kept == ["batches.csv", "report.html", "run.json", "scores.csv"]
    assert (tmp_path / "run.2" / "scores.csv").read_bytes() == first[0]
    assert study(tmp_path, replace(SMALL, seed=1), fresh=True) != first
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints", "run", "run.1", "run.2", "run.3",
    ]  # fmt: skip
    assert (tmp_path / "run.1").read_text() == "taken"


def test_a_run_that_is_no_run_or_none_is_not_moved(tmp_path: Path) -> None:
    assert set_aside(tmp_path / "none") is None
    (tmp_path / "other").mkdir()
    assert set_aside(tmp_path / "other") is None
    assert not (tmp_path / "none").exists()


def test_a_broken_record_can_be_started_over(tmp_path: Path) -> None:
    study(tmp_path)
    (tmp_path / "run" / "run.json").write_text("{")
    study(tmp_path, fresh=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_a_run_that_is_written_is_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    run = tmp_path / "run"
    for name in (None, "rank-0000"):
        with store(run, name) as one:
            one.put(units()[0], rows_of(units()[0]))
            assert "written by" in refusal(lambda: set_aside(run))
        assert run.exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"settings": replace(SMALL, seed=1)}, "another seed: 0 instead of 1; "),
        ({"settings": replace(SMALL, batch_size=9)}, "another batch_size: 8 instead of 9; "),
        (
            {"settings": replace(SMALL, dtype="float64")},
            "another dtype: float32 instead of float64",
        ),
        ({"task": task_on(*tensors(1))}, "instead of"),
        ({"steps": (2,)}, "another checkpoint 'step-1'"),
    ],
)
def test_what_differs_is_told_with_the_next_step(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    study(tmp_path)
    if "steps" in change:
        path = tmp_path / "checkpoints" / "step-1.pt"
        state = torch.load(path, weights_only=True)
        torch.save({name: value + 1 for name, value in state.items()}, path)
    text = refusal(lambda: study(tmp_path, **change))
    assert expected in text
    assert text.endswith(OVER)
    assert "instead of" in text


def test_the_command_starts_over_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.folders import BUNDLED

    run = tmp_path / "run"
    command = ["score", str(BUNDLED / "step-000000.safetensors"), "--methods", "sgd"]
    command += ["--task", "digits-mlp", "--batches", "1", "--batch-size", "8", "--out", str(run)]
    assert main(command) == 0
    assert main([*command, "--seed", "1"]) == 2
    assert "or start over with --fresh" in capsys.readouterr().err
    assert main([*command, "--seed", "1", "--fresh"]) == 0
    assert f"the earlier run is kept in '{tmp_path / 'run.1'}'" in capsys.readouterr().err
