"""The gate and the dense oracle catch faults in methods by layers.

The model is small, and has positions in one layer only: a scale that a layer loses shows there.
"""

from __future__ import annotations

from pathlib import Path

import junitparser
import pytest
import torch

import evalkit
from evalkit.cli import main
from tests.support.structured import Oracle
from tests.support.structured_faults import FAULTS, Apart, Fault, samples
from tests.support.table import Batch

TASK = """import evalkit
from tests.support.structured_faults import Apart, samples

task = evalkit.Task(model=Apart, data=samples, likelihood="categorical")
"""
METHODS = ",".join(fault.method for fault in FAULTS.values())
STEPS = (1, 200)
"""Where the net is undecided, so that KFAC is exact, and where most samples are fitted."""


def train(folder: Path) -> None:
    """Train a model, with checkpoints in a folder."""
    torch.manual_seed(0)
    model, (inputs, labels) = Apart(), samples()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for step in range(1, STEPS[-1] + 1):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if step in STEPS:
            torch.save(model.state_dict(), folder / f"step-{step:03d}.pt")


def score(folder: Path, run: Path, methods: str = METHODS) -> Path:
    """Score the checkpoints."""
    options = ["--batches", "4", "--batch-size", "32", "--damping", "1e-6", "--methods", methods]
    task = f"{folder / 'task.py'}:task"
    checkpoints = str(folder / "checkpoints")
    assert main(["score", checkpoints, "--task", task, *options, "--out", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task, its trajectory and a baseline of it."""
    folder = tmp_path_factory.mktemp("structures")
    (folder / "checkpoints").mkdir()
    (folder / "task.py").write_text(TASK, encoding="utf-8")
    train(folder / "checkpoints")
    run, baseline = score(folder, folder / "run"), folder / "b.csv"
    assert main(["check", str(run), "--baseline", str(baseline), "--update-baseline"]) == 0
    return folder


def failed(folder: Path, place: Path, methods: str = METHODS) -> tuple[int, set[tuple[str, str]]]:
    """Score and check: exit status, and method and verdict of the rows that failed."""
    lines = (folder / "b.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    own = [
        line
        for line in lines
        if line.startswith(("#", "checkpoint,")) or line.split(",")[1] in methods.split(",")
    ]
    baseline, junit = place / "b.csv", place / "gate.xml"
    baseline.write_text("".join(own), encoding="utf-8")
    command = ["check", str(score(folder, place / "run", methods)), "--baseline", str(baseline)]
    status = main([*command, "--junit", str(junit)])
    cases = [case for suite in junitparser.JUnitXml.fromfile(junit) for case in suite]
    return status, {(case.name.split()[0], case.result[0].type) for case in cases if case.result}


@pytest.mark.parametrize("name", FAULTS)
def test_the_gate_catches_a_fault(
    name: str, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAULTS[name]
    fault.plant(monkeypatch)
    assert failed(reference, tmp_path, fault.method) == (1, {(fault.method, "worse")})


def test_the_gate_lets_what_is_unchanged_pass(reference: Path, tmp_path: Path) -> None:
    assert failed(reference, tmp_path) == (0, set())


@pytest.mark.parametrize("name", FAULTS)
def test_the_oracle_catches_a_fault(
    name: str, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault: Fault = FAULTS[name]
    model, (inputs, labels) = Apart(), samples()
    model.load_state_dict(torch.load(reference / "checkpoints" / f"step-{STEPS[-1]:03d}.pt"))
    oracle = Oracle(Batch(model.double(), inputs[:16].double(), labels[:16], "categorical"))
    structure, *settings = fault.method.split(":")
    own = dict(setting.split("=") for setting in settings)
    wanted = oracle.direction(structure, 1e-6, **own)

    def far() -> float:
        lin = evalkit.linearize(*oracle.batch)
        found = evalkit.update(fault.method, lin, damping=1e-6)
        return float((found - wanted).norm() / wanted.norm())

    assert far() < 1e-8
    fault.plant(monkeypatch)
    assert far() > 1e-2
