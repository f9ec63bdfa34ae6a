"""The main job: every checkpoint of a trajectory, scored on the same batches, into a RUN folder.

A study goes one way: :mod:`~evalkit.study.plan` lists the units that are left, checkpoint by
checkpoint, :mod:`~evalkit.study.execute` makes rows of a unit, and :mod:`~evalkit.study.store`
keeps them before the next one starts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from evalkit.checkpoints import Trajectory
from evalkit.curvature import PastTask
from evalkit.errors import EvalkitError
from evalkit.launch import Shard
from evalkit.linearization import Linearization
from evalkit.linearization.split import Split
from evalkit.settings import Settings
from evalkit.storage.files import check_writable
from evalkit.storage.lost_rows import scored_pairs
from evalkit.storage.run_folder import cells as cells_in
from evalkit.storage.run_folder import read_all, read_provenance
from evalkit.study.batches import take_batch
from evalkit.study.estimate import cell_seconds, free_outputs, product_seconds
from evalkit.study.execute import Rows, execute
from evalkit.study.faults import attempted, is_proven, settled
from evalkit.study.keeping import Keeper
from evalkit.study.loaded import Loaded
from evalkit.study.notes import notes_on
from evalkit.study.opened import Opened, open_study
from evalkit.study.past import PastRequest
from evalkit.study.plan import Unit, cells_of, plan
from evalkit.study.processes import executed, is_small, shared_by
from evalkit.study.provenance import rates_in, without_factors
from evalkit.study.ranks import Ranks, shard_of
from evalkit.study.splitting import follow_study, leading, led, opened_together
from evalkit.study.store import Store, open_store
from evalkit.tasks import Task
from evalkit.updates.foreseen import check_needs
from evalkit.work import agreed_rates, threads


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
    ranks: Ranks | None = None,
    shard: Shard | None = None,
    fresh: bool = False,
    on_note: Callable[[str], None] | None = None,
    split: Split | None = None,
) -> None:
    """Score every checkpoint on the same batches and write the RUN folder.

    Everything is verified before the first score, and the folder appears with the first finished
    cell. A study that was interrupted goes on where it stopped when it is called again with the
    same arguments; more methods, dampings, checkpoints and batches extend it. Rows that are there
    are not scored again, and rows that were lost are. A unit that fails while others do not is
    recorded in ``failures.csv``; the next call tries it again.

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
        ranks: that this process shares the study with; all of them call this alike.
        shard: which part of the study to score, where others score the rest; not with ranks.
        fresh: start over: a run that is there is kept under another name.
        on_note: called with a sentence about each thing that goes wrong and is coped with: a batch
            that memory is too small for, a unit that fails; None for warnings.
        split: the processes that share the samples of each batch; all of them call this alike, and
            rank 0 alone writes. Not with ranks or a shard.

    Raises:
        EvalkitError: the arguments do not fit together, a checkpoint cannot be used, the folder
            holds a run of other settings, code or data, or cannot be written to, ranks have
            stopped before all is scored, or nothing can be (:mod:`evalkit.study.faults`).
    """
    place = (0, 1) if ranks is None else (ranks.launch.rank, ranks.launch.world)
    opening = partial(open_study, trajectory, task, settings, past, optimizer, *place)
    opened = opening() if split is None else opened_together(split, opening)
    if split is not None and not split.leads:
        follow_study(opened, split)
        return
    given = opened.model, opened.samples, task.likelihood, settings
    small = torch.get_num_threads() > 1 and is_small(*given)
    among = ranks or shard
    writer = None if among is None else among.writer
    described = opened.described()
    with (
        leading(split),
        threads(1 if small else torch.get_num_threads()),
        open_store(Path(folder), described, task, opened.samples, settings, writer, fresh) as store,
    ):
        cells = tuple(cells_of(trajectory.checkpoints, settings.batches))
        cells = cells if shard is None else shard_of(cells, shard)
        units = plan(cells, settings, store.finished)
        if units:
            check_writable(folder)
        if units and writer is not None:
            store.hold()  # so that there is a run.json that all go by
        started = time.monotonic()
        shown = _Shown(on_progress, len(cells), len(cells) - len(units), ranks)
        shown.at(trajectory.checkpoints[0].name)
        is_shared = small and opened.past is None and ranks is None and split is None
        processes = shared_by(len(units), processes) if is_shared else 1
        sharing = processes if ranks is None else ranks.launch.world
        begin = partial(_begin, opened, store, len(units), sharing, on_start)
        taken = opened.past.taken() if units and opened.past is not None else None
        upcoming = partial(_upcoming, units, ranks)
        loaded = Loaded(opened.model, trajectory.checkpoints, opened.steps, upcoming)
        attempt = led(attempted(_Execution(opened, store, loaded, taken, shown, begin)), split)
        keeper = Keeper(store, settings, on_note)
        handed: Iterable[Unit] = units
        if ranks is not None:
            handed = ranks.handed_out(cells, units, shown.planned, shown.waiting)
        with _agreed(store), executed(handed, attempt, processes) as made:
            for unit, outcome in settled(made, units, attempt, is_proven(settings, store.finished)):
                keeper.keep(unit, outcome)
                shown.finished(unit.cell.checkpoint)
        store.close(time.monotonic() - started)
        shown.at(cells[-1].checkpoint if cells else "")
        if ranks is not None and ranks.is_lost:
            tables = read_all(folder)
            failed = cells_in(tables.failures)
            left = plan(cells, settings, scored_pairs(tables.scores, tables.batches))
            _check_whole([one for one in left if one.key not in failed])


@dataclass
class _Shown:
    """What is shown of a study: how many cells are done, of how many, and what it is at."""

    on_progress: Callable[[Progress], None] | None
    total: int
    before: int
    ranks: Ranks | None
    own: int = 0
    is_planned: bool = False

    def planned(self, units: int) -> None:
        """Take in how many units are left for all ranks."""
        self.before, self.is_planned = self.total - units, True

    def finished(self, checkpoint: str) -> None:
        """Show that one more cell is done."""
        self.own += 1
        self.at(checkpoint)

    def waiting(self) -> None:
        """Show how far other ranks are."""
        self.at("waiting for other ranks")

    def at(self, checkpoint: str, iteration: int = 0, _: float = 0.0) -> None:
        """Show what is scored."""
        if self.on_progress is not None:
            # What others did before this rank knew of the plan is in what it has found finished.
            shared = self.ranks.done if self.ranks is not None and self.is_planned else self.own
            done = self.before + shared
            self.on_progress(Progress(min(done, self.total), self.total, checkpoint, iteration))


class _Execution:
    """Makes the rows of units, one after another, with what a study has opened.

    Args:
        opened: the study.
        store: is told which unit is scored.
        loaded: puts checkpoints into the model.
        taken: past tasks, for methods that have them as an input.
        shown: is told of the iterations of solvers.
        begin: called with the linearization of the first unit that has a gradient, once it is
            known; in this process, not in one that is forked from it.
    """

    def __init__(
        self,
        opened: Opened,
        store: Store,
        loaded: Loaded,
        taken: PastTask | None,
        shown: _Shown,
        begin: Callable[[Linearization, tuple[str, ...]], None],
    ) -> None:
        self._opened, self._store, self._loaded = opened, store, loaded
        self._taken, self._shown = taken, shown
        self._begin, self._begun, self._process = begin, False, os.getpid()
        # Fewer samples at a time, once memory has run out.
        self._settings = opened.settings

    def __call__(self, unit: Unit, shown: bool) -> Rows:
        opened, name = self._opened, unit.cell.checkpoint
        if shown:
            self._store.beginning(unit)
        stepping = self._loaded.hold(name)
        rows = execute(
            opened.model,
            take_batch(opened.samples, opened.settings, unit.cell.batch),
            opened.task.likelihood,
            self._settings,
            unit,
            opened.task.name,
            partial(self._shown.at, name) if shown else None,
            None if self._begun or os.getpid() != self._process else self._starting,
            self._taken,
            stepping,
            opened.split,
        )
        if rows.micro_batch_size is not None:
            self._settings = replace(self._settings, micro_batch_size=rows.micro_batch_size)
        return rows

    def _starting(self, lin: Linearization, left_out: tuple[str, ...]) -> None:
        if not self._begun:  # else the batch is evaluated again, in parts
            self._begun = True
            self._begin(lin, left_out)


def _upcoming(units: Sequence[Unit], ranks: Ranks | None, name: str) -> str | None:
    """Return the checkpoint that is likely to be loaded after one, None where none is."""
    if ranks is not None:
        return ranks.upcoming()
    names = list(dict.fromkeys(unit.cell.checkpoint for unit in units))
    later = names[names.index(name) + 1 :] if name in names else names
    return next(iter(later), None)


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
    outputs = free_outputs(lin) / lin.num_samples
    sizes = {"outputs_per_sample": outputs, "trainable_parameters": lin.num_params}
    store.note({**sizes, **without_factors(lin, settings, left_out)})
    needed = processes * check_needs(lin, settings.methods, settings.others)
    if on_start is not None:
        each = cell_seconds(product_seconds(lin), settings.methods, len(settings.dampings))
        on_start(
            Start(
                units, units * each / processes, (*store.notes, *notes_on(store.provenance, needed))
            )
        )


def _agreed(store: Store) -> AbstractContextManager[None]:
    """Let all that write to a run choose by the rates that were measured at its start."""
    told = read_provenance(store.folder) if store.exists else store.provenance
    rates = rates_in(told)
    return nullcontext() if rates is None else agreed_rates(rates)


def _check_whole(left: Sequence[Unit]) -> None:
    """Refuse to end in silence where the store that hands units out has gone before they were done.

    Raises:
        EvalkitError: units are left.
    """
    if left:
        raise EvalkitError(
            "expected the store of torchrun to last until all is scored, found that it has gone "
            f"with {len(left)} batches left, as where rank 0 or its machine has stopped; the same "
            "command goes on"
        )
