"""Units in several processes: the rows of one, and what becomes of warnings and errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import evalkit.study.processes
from evalkit.cli import main
from evalkit.errors import EvalkitError
from evalkit.linearization import linearize
from evalkit.settings import Settings
from evalkit.study.execute import Rows
from evalkit.study.faults import Failure
from evalkit.study.plan import Unit
from evalkit.study.processes import executed, is_small, shared_by
from evalkit.tasks import Samples
from evalkit.work import product_work
from tests.support.units import UNITS, rows_of, takes_gradients


def refusing(unit: Unit, shown: bool) -> Rows:
    if unit.cell.batch == 3:
        raise EvalkitError("expected another unit, found the fourth; leave it out")
    return rows_of(unit, shown)


def ending(unit: Unit, shown: bool) -> Rows:
    if unit.cell.batch == 3:
        os._exit(1)
    return rows_of(unit, shown)


@pytest.fixture(autouse=True)
def _as_a_command_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests have taken gradients in this process."""
    monkeypatch.setattr(evalkit.study.processes, "_takes_gradients", takes_gradients)


def test_every_unit_is_executed_once_the_first_one_here() -> None:
    with pytest.warns(UserWarning, match="of unit 5"), executed(UNITS, rows_of, 2) as made:
        found = list(made)
    assert {unit: rows.batches["batch"] for unit, rows in found} == {
        unit: [unit.cell.batch] for unit in UNITS
    }
    first, *others = (rows.scores["process"][0] for _, rows in found)
    assert first == os.getpid()
    assert os.getpid() not in others
    assert not any(rows.scores["shown"][0] for _, rows in found)


def test_one_process_goes_in_order() -> None:
    with pytest.warns(UserWarning, match="of unit 5"), executed(UNITS, rows_of, 1) as made:
        found = list(made)
    assert [unit for unit, _ in found] == list(UNITS)
    assert {rows.scores["process"][0] for _, rows in found} == {os.getpid()}


def test_so_does_one_that_cannot_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evalkit.study.processes, "_takes_gradients", refuses_gradients)
    with pytest.warns(UserWarning, match="of unit 5"), executed(UNITS, rows_of, 2) as made:
        assert [unit for unit, _ in made] == list(UNITS)


def refuses_gradients() -> bool:
    return False


def test_errors_are_sentences() -> None:
    with pytest.raises(EvalkitError, match="the fourth"), executed(UNITS, refusing, 2) as made:
        list(made)


def killed(unit: Unit, shown: bool) -> Rows:
    if unit.cell.batch == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return rows_of(unit, shown)


@pytest.mark.parametrize(("execute", "status"), [(ending, "1"), (killed, "-9")])
@pytest.mark.filterwarnings("ignore:.*of unit 5")
def test_a_process_that_is_ended_costs_the_unit_that_it_was_at(
    execute: evalkit.study.processes.Execute, status: str
) -> None:
    with (
        pytest.warns(UserWarning, match="left could not be scored, since processes"),
        executed(UNITS, execute, 2) as made,
    ):
        found = dict(made)
    assert found.keys() == set(UNITS)
    failed = {unit: one.reason for unit, one in found.items() if isinstance(one, Failure)}
    assert [unit.cell.batch for unit in failed] == [3]
    assert f"status {status}," in next(iter(failed.values()))
    for unit, one in found.items():
        if unit not in failed:
            assert one.batches["batch"] == [unit.cell.batch]


class Failing(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight)[:, 5]


def test_a_model_is_small_by_its_products() -> None:
    samples = Samples(torch.randn(9, 4), torch.arange(9) % 3)
    settings = Settings(("sgd",), batch_size=8)
    assert is_small(torch.nn.Linear(4, 3), samples, "categorical", settings)
    large = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(60)), torch.nn.Linear(4, 3))
    assert not is_small(large, samples, "categorical", settings)
    assert not is_small(Failing(), samples, "categorical", settings)  # told when it is scored


class Counting(torch.nn.Linear):
    """Notes how many samples it has seen."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_a_few_samples_tell_the_work_of_the_batch(micro_batch_size: int | None) -> None:
    model, samples = Counting(), Samples(torch.randn(90, 4), torch.arange(90) % 3)
    settings = Settings(("sgd",), batch_size=80, micro_batch_size=micro_batch_size)
    assert is_small(model, samples, "categorical", settings)
    assert max(model.seen) == 2
    whole = linearize(model, *samples.take(torch.arange(80)))
    few = linearize(model, *samples.take(torch.arange(2)))
    assert product_work(few, 80) == product_work(whole)


def test_a_small_model_in_many_parts_is_none() -> None:
    samples = Samples(torch.randn(90, 4), torch.arange(90) % 3)
    settings = Settings(("sgd",), batch_size=80, micro_batch_size=1)
    assert not is_small(torch.nn.Linear(4, 3), samples, "categorical", settings)


def test_processes_have_some_units_each() -> None:
    assert [shared_by(units, 4) for units in (0, 7, 8, 12, 100)] == [1, 1, 2, 3, 4]
    assert shared_by(1000, 64) == 16


def test_tables_are_the_same_to_the_last_byte(tmp_path: Path) -> None:
    """On a machine with several cores; the command of another process, which may be forked."""
    trajectory = Path(__file__).parent.parent / "checkpoints" / "digits-mlp"
    asked = ["score", str(trajectory), "--batches", "1", "--batch-size", "16"]
    asked += ["--methods", "sgd,ef", "--out"]
    assert main([*asked, str(tmp_path / "one")]) == 0
    subprocess.run(
        [sys.executable, "-m", "evalkit", *asked, str(tmp_path / "several")],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        check=True,
        capture_output=True,
    )
    for name in ("scores.csv", "batches.csv"):
        one, several = (tmp_path / folder / name for folder in ("one", "several"))
        assert one.read_bytes() == several.read_bytes()


ORPHANED = """
import os, signal, sys
from tests.support.units import UNITS, rows_of
from evalkit.study.processes import executed

def told(unit, shown):
    print(os.getpid(), flush=True)
    if unit is UNITS[0]:  # by the first process
        os.kill(os.getpid(), signal.SIGKILL)
    return rows_of(unit, shown)

with executed(UNITS, told, 2) as made:
    list(made)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_no_process_outlives_the_command() -> None:
    """However it ends: here by a signal that it cannot see."""
    run = subprocess.run([sys.executable, "-c", ORPHANED], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    deadline = time.monotonic() + 20
    for pid in {int(line) for line in run.stdout.split()}:
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline, f"process {pid} is left"
            time.sleep(0.05)
