"""Ctrl-C and SIGTERM: what they end, what they wait for, and what is said."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evalkit.study.processes
from evalkit.cli import main
from evalkit.interruption import Terminated, handled, uninterrupted
from evalkit.storage.run_folder import read_run
from evalkit.study import execution, store
from evalkit.study.execute import Rows
from evalkit.study.plan import Unit
from evalkit.study.processes import executed
from tests.support.small_studies import MINE, save_checkpoint
from tests.support.units import UNITS, rows_of, takes_gradients

SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def send(name: int) -> None:
    os.kill(os.getpid(), name)
    time.sleep(0.001)  # Python handles it between two of its steps


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_ends_the_block_and_nothing_after_it(name: int) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    steps = []

    def block() -> None:
        with handled():
            steps.append("begun")
            send(name)
            steps.append("ended")

    with pytest.raises(SIGNALS[name]):
        block()
    assert steps == ["begun"]
    assert [signal.getsignal(one) for one in SIGNALS] == before


@pytest.mark.parametrize("name", SIGNALS)
def test_what_must_not_be_halved_is_waited_for(name: int) -> None:
    steps = []

    def block() -> None:
        with handled():
            with uninterrupted():
                with uninterrupted():
                    send(name)
                steps.append("whole")
            steps.append("more")

    with pytest.raises(SIGNALS[name]):
        block()
    assert steps == ["whole"]


def test_user_code_does_not_take_it_for_an_error() -> None:
    from evalkit.tasks.user_code import user_code

    with pytest.raises(Terminated), handled(), user_code("a model"):
        send(signal.SIGTERM)


def test_what_is_ignored_stays_so() -> None:
    """As SIGINT in a command that a shell has put into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handled():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


TWICE = """
import os, signal, time
from evalkit.interruption import handled

with handled():
    try:
        os.kill(os.getpid(), signal.{name})
        time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.{name})
        time.sleep(60)  # whatever is tidied up
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_one_ends_the_process_at_once(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", TWICE.format(name=name)], capture_output=True, text=True
    )
    assert run.returncode == 128 + signal.Signals[name]
    assert run.stderr == "evalkit: ended at once\n"


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str], list[str]]:
    """A command that scores two checkpoints on two batches each."""
    (tmp_path / "mine.py").write_text(MINE)
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoints", step)
    asked = ["score", str(tmp_path / "checkpoints"), "--task", f"{tmp_path / 'mine.py'}:task"]
    asked += ["--batches", "2", "--batch-size", "8", "--methods", "sgd,ief", "--out"]
    return lambda name: [*asked, str(tmp_path / name)]


def test_an_ended_command_says_how_to_go_on_and_does(
    tmp_path: Path,
    command: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command("whole")) == 0
    execute, put = execution.execute, store.Store.put
    kept: list[int] = []

    def ended(name: int, at: str) -> Callable[..., Any]:
        def executing(
            model: Any, batch: Any, likelihood: str, settings: Any, unit: Any, *more: Any
        ):
            rows = execute(model, batch, likelihood, settings, unit, *more)
            if unit.place == at:
                send(name)
            return rows

        return executing

    def putting(self: store.Store, unit: Unit, rows: Rows) -> None:
        send(signal.SIGTERM)
        put(self, unit, rows)
        kept.append(1)

    for name, said in ((signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")):
        with monkeypatch.context() as patch:
            patch.setattr(execution, "execute", ended(name, "checkpoint 'step-1', batch 1"))
            capsys.readouterr()
            assert main(command(said)) == 128 + name
        told = capsys.readouterr().err
        assert f"evalkit: {said}; the same command goes on where it stopped\n" in told
        assert len(read_run(tmp_path / said).batches) == 1
        with monkeypatch.context() as patch:
            patch.setattr(store.Store, "put", putting)
            assert main(command(said)) == 143
        assert len(read_run(tmp_path / said).batches) == 2
        assert main(command(said)) == 0
        for table in ("scores.csv", "batches.csv"):
            found = (tmp_path / said / table).read_bytes()
            assert found == (tmp_path / "whole" / table).read_bytes()
    assert kept == [1, 1]


@pytest.mark.parametrize("name", SIGNALS)
def test_forked_processes_are_not_waited_for(
    name: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evalkit.study.processes, "_takes_gradients", takes_gradients)
    before = set(multiprocessing.active_children())

    def endless(unit: Unit, shown: bool) -> Rows:
        if unit is not UNITS[0]:
            (tmp_path / str(os.getpid())).touch()
            time.sleep(3600)
        return rows_of(unit, shown)

    def ended() -> None:
        with handled(), executed(UNITS, endless, 2) as made:
            next(made)
            while len(list(tmp_path.iterdir())) < 2:
                time.sleep(0.01)
            for path in tmp_path.iterdir():  # a scheduler ends every process of a job
                os.kill(int(path.name), name)
            send(name)
            list(made)

    with pytest.raises(SIGNALS[name]):
        ended()
    assert set(multiprocessing.active_children()) == before
