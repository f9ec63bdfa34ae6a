"""A RUN that is killed, or gets an error, at a change of a file goes on to the same bytes.

``python -m tests.kills --boundaries`` takes every change of all ways, and kills real processes.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evalkit.cli import main
from evalkit.storage import locks
from evalkit.storage.run_folder import read_provenance
from tests.kills.boundaries import check_errors, check_kills, finish, halves, whole_tables
from tests.support.small_studies import MINE, save_checkpoint


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return whole_tables(tmp_path_factory.mktemp("whole") / "run")


def test_a_process_alone_goes_on_wherever_it_is_killed(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    assert check_kills(finish, tmp_path, whole) > 20


def test_parts_go_on_wherever_their_processes_are_killed(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    assert check_kills(halves, tmp_path, whole, every=4) > 10


def test_a_process_goes_on_itself_whatever_is_raised(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """An interrupt in a notebook, and a disk that is full for a moment."""
    assert check_errors(finish, tmp_path, whole, every=5) > 6


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file become larger than so many bytes, as where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    known = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, known)


def test_a_disk_that_is_full_is_told_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoints", step)
    asked = ["score", str(tmp_path / "checkpoints"), "--task", f"{tmp_path / 'mine.py'}:task"]
    asked += ["--batches", "2", "--batch-size", "8", "--methods", "sgd,ef,ief"]
    asked += ["--damping", "1e-12,1e-9,1e-6,1e-3", "--out"]
    assert main([*asked, str(tmp_path / "whole")]) == 0
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "whole").iterdir()}
    run = tmp_path / "run"
    statuses = []
    capsys.readouterr()
    assert sizes["run.json"] < sizes["scores.csv"] - 100
    for size in (100, (sizes["run.json"] + sizes["scores.csv"]) // 2, 10**9):
        with files_of_at_most(size):
            statuses.append(main([*asked, str(run)]))
        told = capsys.readouterr().err
        if statuses[-1]:
            assert told.count("evalkit: error: expected a file that can be written at") == 1
            assert "File too large" in told
            assert "free" in told
    assert statuses == [2, 2, 0]
    assert read_provenance(run)["finished"] is not None
    for name in ("scores.csv", "batches.csv"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path.name for path in run.iterdir()} == set(sizes)
