"""The README's own examples, run as they stand there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evalkit.cli import main
from evalkit.results.summaries import final_table, summarize
from evalkit.storage.run_folder import Run, read_run
from evalkit.tasks import load_task
from tests.support.documents import FILES, README, ROOT


def commands(containing: str) -> list[list[str]]:
    """Return the README's evalkit commands that mention a text, comments left out."""
    lines = [line.split("#")[0].split() for line in README.splitlines()]
    return [
        words[1:] for words in lines if words[:1] == ["evalkit"] and containing in " ".join(words)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder with the README's files and the bundled trajectory."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    shutil.copytree(ROOT / "checkpoints", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FEW = {
    "cost": ["--repetitions", "1", "--methods", "sgd,ief"],
    "errors": ["--batches", "1", "--batch-size", "8", "--methods", "kfac"],
}
"""What makes less of commands whose results the README does not show."""


def test_bring_your_own(folder: Path) -> None:
    for command in [*commands("my_task.py"), commands("report runs/mine")[-1]]:  # it draws all
        assert main([*command, *FEW.get(command[0], [])]) == 0
    assert (folder / "runs/mine/report.html").is_file()
    run = read_run("runs/mine")
    _teaches(run)
    table = final_table(run).set_index("checkpoint")
    told = [line.split() for line in README.splitlines() if line.startswith("     step-")]
    for name, progress, *numbers in told[-3:]:  # those before are of the bundled trajectory
        assert table["progress"][name] == progress
        found = " ".join(table.loc[name, ["SGD", "EF", "iEF", "SF"]]).split()
        assert len(numbers) == len(found)
        for one, other in zip(numbers, found, strict=True):
            value = pytest.approx(float(other.rstrip("%*†")), rel=0.1, abs=0.02)
            assert float(one.rstrip("%*†")) == value, f"{one} in the README, {other} at {name}"


def _teaches(run: Run) -> None:
    """Batches share few samples, have fewer outputs than parameters, and iEF ends ahead."""
    task = load_task("my_task.py:task")
    inputs, targets = task.data()
    samples = int(run.batches["num_samples"].max())
    assert samples <= len(inputs) / 10
    outputs = samples * int(targets.max() + 1)
    assert run.provenance["trainable_parameters"] > 10 * outputs
    last = summarize(run).groupby("method").last()["ratio_mean"]
    assert last["ief"] < 0.9 < 10 < last["ef"]


def test_bring_your_own_is_about_15_lines() -> None:
    lines = [line for line in FILES["my_task.py"].splitlines() if line.strip()]
    assert len(lines) <= 15


def test_add_a_method(folder: Path) -> None:
    (command,) = commands("my_method.py")
    assert main([*command, "--batches", "2"]) == 0
    run = command[command.index("--out") + 1]
    assert set(read_run(run).scores["method"]) == {"sgd", "ief", "scaled"}
    assert len(FILES["my_method.py"].splitlines()) <= 10
