"""The main job: every checkpoint of a trajectory, scored on the same batches, into a RUN folder.

A study goes one way: :mod:`~evalkit.study.plan` lists the units that are left, checkpoint by
checkpoint, :mod:`~evalkit.study.execute` makes rows of a unit, and :mod:`~evalkit.study.store`
keeps them before the next one starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from evalkit.checkpoints import Trajectory
from evalkit.curvature import PastTask
from evalkit.linearization import Linearization
from evalkit.linearization.split import Split
from evalkit.settings import Settings
from evalkit.storage.files import check_writable
from evalkit.study.batches import take_batch
from evalkit.study.estimate import cell_seconds, free_outputs, product_seconds
from evalkit.study.execute import Rows, execute
from evalkit.study.notes import notes_on
from evalkit.study.opened import Loaded, Opened, open_study
from evalkit.study.past import PastRequest
from evalkit.study.plan import Unit, cells_of, plan
from evalkit.study.processes import executed, is_small, shared_by
from evalkit.study.provenance import without_factors
from evalkit.study.splitting import follow_study, leading, led, opened_together
from evalkit.study.store import Store, open_store
from evalkit.tasks import Task
from evalkit.updates.foreseen import check_needs
from evalkit.work import threads


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        done: finished cells (one checkpoint, one batch), those of an earlier start included.
        total: cells of the study.
        checkpoint: the name of the checkpoint that is scored.
        iteration: the iteration of the solver that is running, 0 when none is.
    """

    done: int
    total: int
    checkpoint: str
    iteration: int = 0


@dataclass(frozen=True)
class Start:
    """What is known before the first score.

    Attributes:
        cells: that are left to score.
        seconds: that they are expected to take, a rough number.
        notes: sentences about the request: what it can and cannot tell.
    """

    cells: int
    seconds: float
    notes: tuple[str, ...]


def run_study(
    trajectory: Trajectory,
    task: Task,
    settings: Settings,
    folder: str | Path,
    on_progress: Callable[[Progress], None] | None = None,
    on_start: Callable[[Start], None] | None = None,
    processes: int = 1,
    past: PastRequest | None = None,
    optimizer: str | None = None,
    split: Split | None = None,
) -> None:
    """Score every checkpoint on the same batches and write the RUN folder.

    Everything is verified before the first score, and the folder appears with the first finished
    cell. A study that was interrupted goes on where it stopped when it is called again with the
    same arguments; more methods, dampings, checkpoints and batches extend it. Rows that are there
    are not scored again, and rows that were lost are.

    Args:
        trajectory: the checkpoints.
        task: the model and the training samples that batches are drawn from.
        settings: methods, dampings, batches, seed.
        folder: the folder of the run; new, or one that these arguments started.
        on_progress: called when the study starts, at every iteration of a solver and after every
            cell.
        on_start: called once, before the first score, unless there is nothing to score.
        processes: that a small model is scored in, at most. More than one are forks of this one,
            which has taken no gradient so far, so that there is one where there are past tasks.
        past: past tasks, for methods that have them as an input.
        optimizer: the class of the saved optimizers, for the method of that name; None to go by
            what their files say.
        split: the processes that share the samples of each batch; all of them call this alike, and
            rank 0 alone writes.

    Raises:
        EvalkitError: the arguments do not fit together, a checkpoint cannot be used, or the folder
            holds a run of other settings, code or data, or cannot be written to.
    """
    opening = partial(open_study, trajectory, task, settings, past, optimizer)
    opened = opening() if split is None else opened_together(split, opening)
    if split is not None and not split.leads:
        follow_study(opened, split)
        return
    given = opened.model, opened.samples, task.likelihood, settings
    small = torch.get_num_threads() > 1 and is_small(*given)
    described = opened.described()
    with (
        leading(split),
        threads(1 if small else torch.get_num_threads()),
        open_store(Path(folder), described, task, opened.samples, settings) as store,
    ):
        cells = tuple(cells_of(trajectory.checkpoints, settings.batches))
        units = plan(cells, settings, store.finished)
        if units:
            check_writable(folder)
        shown = _Shown(on_progress, len(cells) - len(units), len(cells))
        started = time.monotonic()
        shown.at(trajectory.checkpoints[0].name)
        processes = (
            shared_by(len(units), processes)
            if small and opened.past is None and split is None
            else 1
        )
        begin = partial(_begin, opened, store, len(units), processes, on_start)
        taken = opened.past.taken() if units and opened.past is not None else None
        rows_of = _Execution(opened, store, taken, shown, begin, units[0] if units else None)
        with executed(units, led(rows_of, split), processes) as made:
            for unit, rows in made:
                store.put(unit, rows)
                shown.done += 1
                shown.at(unit.cell.checkpoint)
        store.close(time.monotonic() - started)


@dataclass
class _Shown:
    """What is shown of a study: how many cells are done, of how many, and what it is at."""

    on_progress: Callable[[Progress], None] | None
    done: int
    total: int

    def at(self, checkpoint: str, iteration: int = 0, _: float = 0.0) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(self.done, self.total, checkpoint, iteration))


class _Execution:
    """Makes the rows of units, one after another, with what a study has opened.

    Args:
        opened: the study.
        store: is told which unit is scored.
        taken: past tasks, for methods that have them as an input.
        shown: is told of the iterations of solvers.
        begin: called with the linearization of the first unit, once its gradient is known.
        first: that unit; processes that are forked before it is executed have others.
    """

    def __init__(
        self,
        opened: Opened,
        store: Store,
        taken: PastTask | None,
        shown: _Shown,
        begin: Callable[[Linearization, tuple[str, ...]], None],
        first: Unit | None,
    ) -> None:
        self._opened, self._store, self._taken, self._shown = opened, store, taken, shown
        self._begin, self._first = begin, first
        self._loaded = Loaded(opened.model, opened.trajectory.checkpoints, opened.steps)

    def __call__(self, unit: Unit, shown: bool) -> Rows:
        opened, name = self._opened, unit.cell.checkpoint
        if shown:
            self._store.beginning(unit)
        return execute(
            opened.model,
            take_batch(opened.samples, opened.settings, unit.cell.batch),
            opened.task.likelihood,
            opened.settings,
            unit,
            opened.task.name,
            partial(self._shown.at, name) if shown else None,
            self._begin if unit is self._first else None,
            self._taken,
            self._loaded.hold(name),
            opened.split,
        )


def _begin(
    opened: Opened,
    store: Store,
    units: int,
    processes: int,
    on_start: Callable[[Start], None] | None,
    lin: Linearization,
    left_out: tuple[str, ...],
) -> None:
    """Say what the first linearization tells of a study: in ``run.json``, and to the caller."""
    settings = opened.settings
    store.provenance["outputs_per_sample"] = free_outputs(lin) / lin.num_samples
    store.provenance["trainable_parameters"] = lin.num_params
    store.note(without_factors(lin, settings, left_out))
    needed = processes * check_needs(lin, settings.methods, settings.others)
    if on_start is not None:
        each = cell_seconds(product_seconds(lin), settings.methods, len(settings.dampings))
        on_start(
            Start(
                units, units * each / processes, (*store.notes, *notes_on(store.provenance, needed))
            )
        )
