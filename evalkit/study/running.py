"""The main job: every checkpoint of a trajectory, scored on the same batches, into a RUN folder.

A study goes one way: :mod:`~evalkit.study.plan` lists the units that are left, checkpoint by
checkpoint, :mod:`~evalkit.study.execute` makes rows of a unit, and :mod:`~evalkit.study.store`
keeps them before the next one starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from evalkit.checkpoints import Trajectory
from evalkit.counts import counted
from evalkit.errors import EvalkitError
from evalkit.launch import Shard
from evalkit.linearization import Linearization
from evalkit.linearization.split import Split
from evalkit.settings import Settings
from evalkit.storage.files import check_writable
from evalkit.storage.lost_rows import scored_pairs
from evalkit.storage.rows import Cell
from evalkit.storage.run_folder import cells as cells_in
from evalkit.storage.run_folder import read_all, read_provenance
from evalkit.study.blocks import shard_of
from evalkit.study.estimate import cell_seconds, free_outputs, product_seconds
from evalkit.study.execution import Execution
from evalkit.study.faults import attempted, is_proven, settled
from evalkit.study.keeping import Keeper
from evalkit.study.loaded import Loaded
from evalkit.study.notes import notes_on
from evalkit.study.opened import Opened, open_study
from evalkit.study.past import PastRequest
from evalkit.study.plan import Unit, cells_of, plan
from evalkit.study.processes import executed, gains_from_processes, shared_by
from evalkit.study.provenance import rates_in, without_factors
from evalkit.study.ranks import Ranks
from evalkit.study.shown import Progress, Shown
from evalkit.study.splitting import follow_study, leading, led, opened_together
from evalkit.study.store import Store, open_store
from evalkit.tasks import Task
from evalkit.updates.foreseen import check_needs
from evalkit.work import agreed_rates, threads


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
    tables: str | None = None,
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
        tables: ``"csv"`` or ``"parquet"``; None for the form that the run has, CSV at first.
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
    small = gains_from_processes(*given)
    among = ranks or shard
    writer = None if among is None else among.writer
    described = opened.described()
    fresh = fresh and (ranks is None or ranks.starts_over())
    with (
        leading(split),
        threads(1 if small else torch.get_num_threads()),
        open_store(
            Path(folder), described, task, opened.samples, settings, writer, fresh, tables
        ) as store,
    ):
        if fresh and ranks is not None:
            ranks.has_started_over()
        cells = tuple(cells_of(trajectory.checkpoints, settings.batches))
        cells = cells if shard is None else shard_of(cells, shard)
        units = plan(cells, settings, store.finished)
        if units and writer is None:
            check_writable(folder)  # which removes a new folder again, maybe that of another
        elif units:
            store.hold()  # so that there is a run.json that all go by
        is_shared = small and opened.past is None and ranks is None and split is None
        processes = shared_by(len(units), processes) if is_shared else 1
        told = _Told(on_progress, on_start, on_note)
        _score(opened, store, cells, units, processes, ranks, told)
    if ranks is not None and ranks.is_lost:
        _check_whole(folder, cells, settings)


@dataclass(frozen=True)
class _Told:
    """What a caller of a study is told by; see :func:`run_study`."""

    on_progress: Callable[[Progress], None] | None
    on_start: Callable[[Start], None] | None
    on_note: Callable[[str], None] | None


def _score(
    opened: Opened,
    store: Store,
    cells: Sequence[Cell],
    units: Sequence[Unit],
    processes: int,
    ranks: Ranks | None,
    told: _Told,
) -> None:
    """Score the units that this process gets, and keep each before the next one starts.

    Args:
        opened: the study.
        store: where rows and failures are kept.
        cells: of the study, or of this shard of it.
        units: of them that are left.
        processes: forks of this one that score them.
        ranks: that share them; None where this process gets all.
        told: what the caller is told by.
    """
    started, settings = time.monotonic(), opened.settings
    checkpoints = opened.trajectory.checkpoints
    shown = Shown(told.on_progress, len(cells), len(cells) - len(units), ranks)
    shown.at(checkpoints[0].name)
    sharing = processes if ranks is None else ranks.launch.world
    begin = partial(_begin, opened, store, len(units), sharing, told.on_start)
    taken = opened.past.taken() if units and opened.past is not None else None
    loaded = Loaded(opened.model, checkpoints, opened.steps, partial(_upcoming, units, ranks))
    execution = Execution(opened, store, loaded, taken, shown, begin)
    attempt = led(attempted(execution), opened.split)
    keeper, proven = Keeper(store, settings, told.on_note), is_proven(settings, store.finished)
    handed: Iterable[Unit] = units
    if ranks is not None:
        handed = ranks.handed_out(cells, units, shown.planned, shown.waiting)
    with _agreed(store), executed(handed, attempt, processes) as made:
        for unit, outcome in settled(made, units, attempt, proven):
            keeper.keep(unit, outcome)
            shown.finished(unit.cell.checkpoint)
    store.close(time.monotonic() - started)
    shown.at(checkpoints[-1].name)


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


def _check_whole(folder: str | Path, cells: Sequence[Cell], settings: Settings) -> None:
    """Refuse to end in silence where the store that hands units out has gone before they were done.

    Raises:
        EvalkitError: units are left that nobody has scored or recorded as failed.
    """
    tables = read_all(folder)
    failed = cells_in(tables.failures)
    left = plan(cells, settings, scored_pairs(tables.scores, tables.batches))
    count = sum(unit.key not in failed for unit in left)
    if count:
        raise EvalkitError(
            "expected the store of torchrun to last until all is scored, found that it has gone "
            f"with {counted(count, 'batch')} left, as where rank 0 or its machine has stopped; the "
            "same command goes on"
        )
