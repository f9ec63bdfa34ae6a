"""The gate catches faults in the engine and its methods, and lets equal computations pass.

Everything runs as a user runs it: 'evalkit score' on a checkpoint of the bundled trajectory,
then 'evalkit check' against the baseline of the engine as it is. Size and number of batches are
those of 'make gate', chosen so that every fault costs something: docs/guides/guard.md says which do
not on larger ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import junitparser
import pytest

from evalkit.checkpoints import open_trajectory
from evalkit.cli import main
from evalkit.gate.baseline_file import read_baseline
from tests.support.faults import FAULTS, as_method, reordered_ief, samples_reversed
from tests.support.folders import BUNDLED

STEPS = ("000184",)
METHODS = "sgd,ef,ief,sf,ngd"
WITHOUT_NGD = "sgd,ef,ief,sf"
"""For faults that are not NGD's own, whose solve costs more than all else."""
LONGER = ("--batches", "16", "--methods", "sgd,ief")
SUBTLE = "iEF with un-squared norms"
"""It costs much in few batches: eight do not tell it from chance (p = 0.09 by a t test)."""


def score(folder: Path, run: Path, *more: str) -> Path:
    """Score the trajectory in ``folder`` into ``run``."""
    small = {"--batches": "8", "--batch-size": "16", "--methods": METHODS}
    small |= dict(zip(more[::2], more[1::2], strict=True))
    options = [word for pair in small.items() for word in pair]
    command = ["score", str(folder), "--task", "digits-mlp", *options, "--out", str(run)]
    assert main(command) == 0
    return run


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a reduced trajectory and its baseline."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "checkpoints").mkdir()
    for step in STEPS:
        shutil.copy(BUNDLED / f"step-{step}.safetensors", folder / "checkpoints")
    run = score(folder / "checkpoints", folder / "run")
    assert main(["check", str(run), "--baseline", str(folder / "b.csv"), "--update-baseline"]) == 0
    return folder


@pytest.fixture(scope="module")
def longer_reference(reference: Path) -> Path:
    """Return a folder as ``reference`` makes it, of iEF on twice as many batches."""
    folder = reference / "longer"
    shutil.copytree(reference / "checkpoints", folder / "checkpoints")
    run = score(folder / "checkpoints", folder / "run", *LONGER)
    assert main(["check", str(run), "--baseline", str(folder / "b.csv"), "--update-baseline"]) == 0
    return folder


def baseline_of(folder: Path, methods: str) -> Path:
    """Return the baseline of a folder with the rows of these methods alone."""
    lines = (folder / "b.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    head = ("#", "checkpoint,")
    kept = [
        line for line in lines if line.startswith(head) or line.split(",")[1] in methods.split(",")
    ]
    path = folder / f"b-{methods}.csv"
    path.write_text("".join(kept), encoding="utf-8")
    return path


@pytest.fixture
def checked(reference: Path, tmp_path: Path) -> Callable[..., tuple[int, list[Any]]]:
    """Return a function that scores, checks, and gives exit status and the cases that failed."""

    def run_and_check(*more: str, folder: Path = reference) -> tuple[int, list[Any]]:
        run = score(folder / "checkpoints", tmp_path / "run", *more)
        junit = tmp_path / "gate.xml"
        methods = more[more.index("--methods") + 1] if "--methods" in more else METHODS
        baseline = baseline_of(folder, methods)
        command = ["check", str(run), "--baseline", str(baseline), "--junit", str(junit)]
        status = main(command)
        cases = [case for suite in junitparser.JUnitXml.fromfile(junit) for case in suite]
        return status, [case for case in cases if case.result]

    return run_and_check


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_and_named(
    name: str,
    checked: Callable[..., tuple[int, list[Any]]],
    longer_reference: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault = FAULTS[name]
    fault.plant(monkeypatch)
    if name == SUBTLE:
        status, failed = checked(*LONGER, folder=longer_reference)
    elif fault.method == "ngd":
        status, failed = checked()
    else:
        status, failed = checked("--methods", WITHOUT_NGD)
    assert status == 1
    assert failed
    for case in failed:
        assert case.name.split()[0] == fault.method
        assert case.result[0].type == fault.verdict


EQUAL: dict[str, tuple[tuple[str, ...], Callable[[pytest.MonkeyPatch], None]]] = {
    "nothing changed": (("--methods", WITHOUT_NGD), lambda patch: None),
    "float64": (("--dtype", "float64"), lambda patch: None),
    "micro-batches": (("--micro-batch-size", "6"), lambda patch: None),
    "samples reversed": ((), samples_reversed),
    "iEF from per-sample gradients, reordered": (
        ("--methods", WITHOUT_NGD),
        as_method("ief", reordered_ief),
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_an_equal_computation_passes(
    name: str, checked: Callable[..., tuple[int, list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, change = EQUAL[name]
    change(monkeypatch)
    assert checked(*options) == (0, [])


def test_the_committed_baseline_is_of_the_whole_trajectory() -> None:
    baseline = read_baseline(BUNDLED.parents[1] / "reports" / "baselines" / "digits-mlp.csv")
    checkpoints = open_trajectory(BUNDLED).checkpoints
    assert dict(baseline.checkpoints) == {one.name: one.sha256 for one in checkpoints}
    assert set(baseline.rows["method"]) == set(METHODS.split(","))
    assert len(baseline.rows) == len(checkpoints) * 5 * 8
    assert baseline.rows["descends"].all()
