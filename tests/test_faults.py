"""Units that fail: what a study goes on without, what ends it at once, and what is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.cli import main
from evalkit.errors import EvalkitError
from evalkit.storage.rows import Cell
from evalkit.storage.run_folder import read_run
from evalkit.study import execution, running
from evalkit.study.execute import Rows
from evalkit.study.faults import Failure, Outcome, settled
from evalkit.study.plan import Unit
from evalkit.study.running import Progress
from evalkit.tasks import Task
from tests.support.small_studies import MINE, SMALL, save_checkpoint, study, tensors

STEPS = (1, 2, 3)
UNITS = tuple(
    Unit(Cell(name, step, step / 2, batch), frozenset({("sgd", 0.0)}))
    for step, name in enumerate(("first", "middle", "last"))
    for batch in range(3)
)
WHOLE = Rows({"method": ["sgd"]}, {"batch": [0]})
PARTLY = replace(WHOLE, failed={("ef", 0.0): "expected one thing, found another; do this"})


def outcomes(bad: set[int], proven: bool = False, units: tuple[Unit, ...] = UNITS) -> list[int]:
    """Return the places of what is settled, in order; those of failures are negative, less one."""

    def attempt(unit: Unit, shown: bool) -> Outcome:
        return Failure(f"of {units.index(unit)}") if units.index(unit) in bad else WHOLE

    made = ((unit, attempt(unit, True)) for unit in units)
    return [
        -1 - units.index(unit) if isinstance(found, Failure) else units.index(unit)
        for unit, found in settled(made, units, attempt, proven)
    ]


def test_failures_are_settled_by_a_rule() -> None:
    assert outcomes(set()) == list(range(9))
    assert outcomes({4}) == [0, 1, 2, 3, -5, 5, 6, 7, 8]
    # The first one fails, one of another checkpoint does not, and is not made twice.
    assert outcomes({0, 1}) == [8, -1, -2, 2, 3, 4, 5, 6, 7]
    for bad in ({0, 8}, set(range(9))):
        with pytest.raises(EvalkitError, match=r"^checkpoint 'first', batch 0: of 0$"):
            outcomes(bad)
    # Of one checkpoint, another batch; of one unit, none.
    assert outcomes({0}, units=UNITS[:3]) == [2, -1, 1]
    with pytest.raises(EvalkitError, match="of 0"):
        outcomes({0}, units=UNITS[:1])
    # Once it is known that all can be scored, nothing ends a start.
    assert outcomes(set(range(9)), proven=True) == [-1 - place for place in range(9)]


def test_a_unit_with_some_rows_proves_nothing() -> None:
    made = [(UNITS[0], PARTLY)]
    with pytest.raises(EvalkitError, match=r"batch 0: ef: expected one thing"):
        list(settled([(UNITS[0], PARTLY)], UNITS, lambda unit, shown: PARTLY, False))
    found = list(settled(made, UNITS, lambda unit, shown: WHOLE, False))
    assert found == [(UNITS[-1], WHOLE), (UNITS[0], PARTLY)]


def changed_when(folder: Path, done: int, checkpoint: int, content: bytes) -> Any:
    """Return what gives a checkpoint another content once so many cells are done."""

    def watch(progress: Progress) -> None:
        if progress.done == done:
            (folder / "checkpoints" / f"step-{checkpoint}.pt").write_bytes(content)

    return watch


@pytest.mark.parametrize("content", [b"", b"other"])
def test_a_checkpoint_that_turns_unreadable_costs_its_own_units(
    tmp_path: Path, content: bytes
) -> None:
    whole = study(tmp_path, steps=STEPS)
    (tmp_path / "run").rename(tmp_path / "whole")
    kept = (tmp_path / "checkpoints" / "step-2.pt").read_bytes()
    notes: list[str] = []
    watch = changed_when(tmp_path, 1, 2, content)
    study(tmp_path, steps=STEPS, on_progress=watch, on_note=notes.append)
    run = read_run(tmp_path / "run")
    assert set(run.scores["checkpoint"]) == {"step-1", "step-3"}
    assert run.provenance["finished"] is None
    assert run.failures[["checkpoint", "batch"]].values.tolist() == [["step-2", 0], ["step-2", 1]]
    assert "step-2.pt" in run.failures["reason"][0]
    assert [note.split(": ")[0] for note in notes] == [
        "checkpoint 'step-2', batch 0",
        "checkpoint 'step-2', batch 1",
    ]
    (tmp_path / "checkpoints" / "step-2.pt").write_bytes(kept)
    assert study(tmp_path, steps=STEPS) == whole
    assert not (tmp_path / "run" / "failures.csv").exists()
    assert read_run(tmp_path / "run").provenance["finished"] is not None


class Refusing(nn.Linear):
    """Cannot take the samples of one batch at the checkpoints of some steps."""

    def __init__(self, sample: Tensor, biases: tuple[float, ...]) -> None:
        super().__init__(8, 3)
        self.sample, self.biases = sample, biases

    def forward(self, x: Tensor) -> Tensor:
        first = float(self.bias.detach()[0])  # looked at in any case: it is a use of the bias
        here = any(abs(first - bias) < 1e-6 for bias in self.biases)
        if here and (x == self.sample).all(1).any():
            raise RuntimeError("this sample is too much")
        return super().forward(x)


def refusing(folder: Path, checkpoints: tuple[int, ...], batch: int = 0) -> Task:
    """Return a task whose model cannot take a batch at some checkpoints."""
    from evalkit.study.batches import draw
    from evalkit.tasks import Samples

    samples = Samples(*tensors())
    others = [draw(samples, 8, 0, one)[0] for one in range(SMALL.batches) if one != batch]
    taken, _ = draw(samples, 8, 0, batch)
    here = next(row for row in taken if not any((row == one).all(1).any() for one in others))
    (folder / "checkpoints").mkdir(exist_ok=True)
    for step in STEPS:
        save_checkpoint(folder / "checkpoints", step)
    biases = tuple(
        float(torch.load(folder / "checkpoints" / f"step-{step}.pt")["bias"][0])
        for step in checkpoints
    )
    return Task(model=lambda: Refusing(here, biases), data=tensors, name="small")


def test_a_batch_that_cannot_be_scored_costs_no_other(tmp_path: Path) -> None:
    whole = study(tmp_path, steps=STEPS, task=refusing(tmp_path, ()))
    (tmp_path / "run").rename(tmp_path / "whole")
    with pytest.warns(UserWarning, match=r"checkpoint 'step-1', batch 0: .*too much"):
        study(tmp_path, steps=STEPS, task=refusing(tmp_path, (1,)))
    run = read_run(tmp_path / "run")
    assert len(run.batches) == 5
    assert run.failures[["checkpoint", "batch"]].values.tolist() == [["step-1", 0]]
    assert study(tmp_path, steps=STEPS, task=refusing(tmp_path, ())) == whole


class Broken(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("this sample is too much")


def test_what_fails_everywhere_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(EvalkitError, match=r"^checkpoint 'step-1', batch 0: .*too much"):
        study(tmp_path, steps=STEPS, task=Task(model=lambda: Broken(8, 3), data=tensors))
    assert not (tmp_path / "run").exists()


def test_a_method_that_fails_is_tried_again(tmp_path: Path) -> None:
    broken = [True]

    @evalkit.method("moody")
    def moody(lin: evalkit.Linearization, damping: float) -> Tensor:
        if broken[0] and lin.gradient[0] > 0:
            raise ArithmeticError("not today")
        return lin.gradient

    settings = replace(SMALL, methods=("sgd", "moody", "ief"))
    study(tmp_path, settings, steps=(1, 2, 3, 4, 5), on_note=[].append)
    run = read_run(tmp_path / "run")
    failed = len(run.failures)
    assert 0 < failed < 10
    assert len(run.batches) == 10
    assert len(run.scores) == 30 - failed
    assert run.failures["reason"].str.startswith("moody: expected the scoring of task").all()
    broken[0] = False
    mended = study(tmp_path, settings, steps=(1, 2, 3, 4, 5))
    (tmp_path / "run").rename(tmp_path / "mended")
    assert study(tmp_path, settings, steps=(1, 2, 3, 4, 5)) == mended


class Crowded(nn.Linear):
    """Has memory for four samples."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().forward(x)


def test_memory_that_runs_out_is_noted_and_said_once(tmp_path: Path) -> None:
    study(tmp_path, steps=STEPS)
    (tmp_path / "run").rename(tmp_path / "whole")
    notes: list[str] = []
    crowded = Task(model=lambda: Crowded(8, 3), data=tensors, name="small")
    study(tmp_path, steps=STEPS, task=crowded, on_note=notes.append)
    assert len(notes) == 1
    assert "4 samples at a time" in notes[0]
    assert "`micro_batch_size=4`" in notes[0]
    run, whole = read_run(tmp_path / "run"), read_run(tmp_path / "whole")
    assert run.provenance["micro_batch_size_that_fits"] == 4
    assert run.provenance["settings"]["micro_batch_size"] is None
    assert run.batches["micro_batch_size"].tolist() == [4] * 6
    assert whole.batches["micro_batch_size"].tolist() == [8] * 6
    assert run.scores["gamma"].tolist() == pytest.approx(whole.scores["gamma"].tolist(), rel=1e-5)


def test_the_start_is_told_once_though_the_batch_is_evaluated_again(tmp_path: Path) -> None:
    starts: list[running.Start] = []
    crowded = Task(model=lambda: Crowded(8, 3), data=tensors, name="small")
    study(tmp_path, task=crowded, on_note=[].append, on_start=starts.append)
    assert [start.cells for start in starts] == [4]


def test_the_command_counts_what_failed_and_ends_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    for step in STEPS:
        save_checkpoint(tmp_path / "checkpoints", step)
    command = ["score", str(tmp_path / "checkpoints"), "--task", f"{tmp_path / 'mine.py'}:task"]
    command += ["--batches", "2", "--batch-size", "8", "--methods", "sgd,ief"]
    command += ["--out", str(tmp_path / "run")]
    execute = execution.execute

    def failing(model: Any, batch: Any, likelihood: str, settings: Any, unit: Unit, *more: Any):
        if (unit.cell.checkpoint, unit.cell.batch) == ("step-2", 1):
            raise EvalkitError("expected 5 more GB, found none; lower `batch_size`")
        return execute(model, batch, likelihood, settings, unit, *more)

    with monkeypatch.context() as patch:
        patch.setattr(execution, "execute", failing)
        for _ in range(2):  # the second start tries it again
            assert main(command) == 1
            told = capsys.readouterr().err
            assert told.count("1 batch was not scored, or not by every method") == 1
            assert "1 x 'expected 5 more GB, found none; lower --batch-size'" in told
            assert "note: checkpoint 'step-2', batch 1: expected 5 more GB" in told
    assert main(command) == 0
    assert "not scored" not in capsys.readouterr().err
    assert read_run(tmp_path / "run").provenance["finished"] is not None


def test_a_clock_that_jumps_gives_no_negative_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durations are those of a clock that only goes forward."""
    years = iter(range(2060, 2000, -1))

    def jumping() -> str:
        return f"{next(years)}-01-01T00:00:00+00:00"

    for module in ("study.provenance", "study.stored", "storage.writers"):
        monkeypatch.setattr(f"evalkit.{module}.now", jumping, raising=False)
    study(tmp_path)
    provenance = read_run(tmp_path / "run").provenance
    assert provenance["finished"] >= provenance["started"]
    assert 0 < provenance["seconds"] < 600
