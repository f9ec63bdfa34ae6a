"""``evalkit doctor`` finds each planted problem, names its cure, and is quiet on healthy tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evalkit.cli import main
from evalkit.doctor import examine, memory, of_task
from evalkit.settings import Settings
from evalkit.tasks import load_task
from evalkit.work import threads
from tests.support.doctor_cases import HEALTHY, PLANTED
from tests.support.folders import BUNDLED
from tests.support.planted import written

SMALL = ["--batch-size", "8", "--batches", "3", "--methods", "sgd,ief"]


@pytest.fixture(autouse=True)
def without_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory has tests of its own; torch's profiler takes longer than all other checks."""
    monkeypatch.setattr(memory, "peak_mebibytes", lambda work, device: 1.0)


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the exit status and the findings by name, with those of the whole content."""
    status = main(["doctor", *arguments, "--json"])
    content = json.loads(capsys.readouterr().out)
    assert content["status"] == status
    return status, {one["name"]: one for one in content["findings"]}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_problem_is_found_with_its_cure(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = PLANTED[name]
    status, findings = examined(capsys, planted.written(tmp_path), *SMALL)
    found = findings[planted.check]
    assert status == planted.status, found
    assert found["verdict"] == {1: "warn", 2: "fail"}[status]
    for words in planted.said:
        assert words in found["finding"]
    for words in planted.cure:
        assert words in found["cure"]


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_tasks_have_nothing_to_change(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, findings = examined(capsys, written(tmp_path, HEALTHY[name]), *SMALL)
    assert status == 0, [one for one in findings.values() if one["verdict"] != "ok"]
    assert all(not one["cure"] for one in findings.values())


@pytest.mark.parametrize("checkpoint", ["step-000000", "step-000920"])
def test_bundled_checkpoints_are_healthy(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(BUNDLED), "--checkpoint", checkpoint, "--batch-size", "32"]
    status, findings = examined(capsys, *asked)
    assert status == 0, findings


def test_the_bundled_task_is_healthy_with_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    status, findings = examined(capsys, "digits-mlp", "--methods", "sgd,ief,ngd")
    assert status == 0, findings
    assert findings["solver"]["numbers"]["solver"] in ("cg", "direct", "sketch")
    assert findings["parameters"]["numbers"]["fall_back"] == []
    assert findings["floor"]["numbers"] == {"outputs": 1440, "parameters": 8970}


@pytest.mark.parametrize(
    ("torch_threads", "methods", "processes"),
    [(2, ("sgd",), 2), (1, ("sgd",), 1), (2, ("sgd", "fopng"), 1)],
)
def test_the_time_is_that_of_the_processes_that_score(
    torch_threads: int, methods: tuple[str, ...], processes: int
) -> None:
    """One where torch has one thread, as OMP_NUM_THREADS=1 asks for, or where there is a past."""
    settings = Settings(methods, batches=10, batch_size=8)
    with threads(torch_threads):
        report = examine(of_task(load_task("digits-mlp"), settings), processes=2)
    found = next(one for one in report.findings if one.name == "time")
    assert found.numbers["processes"] == processes
    each, total = found.numbers["batch_seconds"], found.numbers["seconds"]
    assert total == pytest.approx(10 * each / processes)
