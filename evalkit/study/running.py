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

from evalkit.checkpoints import Trajectory, load_into, verify_trajectory
from evalkit.checkpoints.adapters import model_for
from evalkit.evaluation.devices import check_device
from evalkit.linearization import Linearization
from evalkit.scoring import check_request
from evalkit.settings import Settings
from evalkit.storage.columns import check_name
from evalkit.storage.files import check_writable
from evalkit.study.batches import samples_to_score, take_batch
from evalkit.study.estimate import cell_seconds, free_outputs, product_seconds
from evalkit.study.execute import Rows, execute
from evalkit.study.notes import notes_on
from evalkit.study.past import PastRequest, open_past
from evalkit.study.plan import Unit, cells_of, plan
from evalkit.study.processes import executed, is_small, shared_by
from evalkit.study.provenance import describe_study, without_factors
from evalkit.study.steps import open_steps
from evalkit.study.store import open_store
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

    Raises:
        EvalkitError: the arguments do not fit together, a checkpoint cannot be used, or the folder
            holds a run of other settings, code or data, or cannot be written to.
    """
    check_request(settings.methods, settings.dampings, past is not None, optimizer=True)
    if past is not None:
        past.check(settings.methods)
    for checkpoint in trajectory.checkpoints:
        check_name("checkpoint", checkpoint.name)
    samples = samples_to_score(task, settings.batch_size)
    device = check_device(settings.device)
    model = model_for(trajectory, task, settings.seed).eval().to(device)
    samples = task.fit_labels(samples, model)
    verify_trajectory(trajectory, model)
    opened = None if past is None else open_past(past, settings, model)
    steps = open_steps(trajectory.checkpoints, settings.methods, model, optimizer)
    small = torch.get_num_threads() > 1 and is_small(model, samples, task.likelihood, settings)
    with threads(1 if small else torch.get_num_threads()):
        provenance = describe_study(trajectory, task, settings, model, len(samples))
        if opened is not None:
            provenance["past"] = opened.entries
        if steps is not None:
            provenance["optimizers"] = steps.entries
        store = open_store(Path(folder), provenance, task, samples, settings)
        cells = cells_of(trajectory.checkpoints, settings.batches)
        units = plan(cells, settings, store.finished)
        if units:
            check_writable(folder)
        total = len(trajectory.checkpoints) * settings.batches
        done, started = total - len(units), time.monotonic()
        show = partial(_show, on_progress, total)
        show(done, trajectory.checkpoints[0].name)
        processes = shared_by(len(units), processes) if small and opened is None else 1
        taken = opened.taken() if units and opened is not None else None
        by_name = {checkpoint.name: checkpoint for checkpoint in trajectory.checkpoints}
        loaded, stepping = "", None

        def begin(lin: Linearization, left_out: tuple[str, ...]) -> None:
            provenance["outputs_per_sample"] = free_outputs(lin) / lin.num_samples
            provenance["trainable_parameters"] = lin.num_params
            store.note(without_factors(lin, settings, left_out))
            needed = processes * check_needs(lin, settings.methods, settings.others)
            if on_start is not None:
                each = cell_seconds(product_seconds(lin), settings.methods, len(settings.dampings))
                seconds = len(units) * each / processes
                on_start(Start(len(units), seconds, notes_on(provenance, needed)))

        def rows_of(unit: Unit, shown: bool) -> Rows:
            nonlocal loaded, stepping
            name = unit.cell.checkpoint
            if name != loaded:
                load_into(model, by_name[name])
                stepping = None if steps is None else steps.at(by_name[name])
                loaded = name
            return execute(
                model,
                take_batch(samples, settings, unit.cell.batch),
                task.likelihood,
                settings,
                unit,
                task.name,
                partial(_iterated, show, done, name) if shown else None,
                begin if unit is units[0] else None,
                taken,
                stepping,
            )

        with executed(units, rows_of, processes) as made:
            for unit, rows in made:
                store.put(unit, rows)
                done += 1
                show(done, unit.cell.checkpoint)
        store.close(time.monotonic() - started)


def _show(
    on_progress: Callable[[Progress], None] | None,
    total: int,
    done: int,
    checkpoint: str,
    iteration: int = 0,
) -> None:
    if on_progress is not None:
        on_progress(Progress(done, total, checkpoint, iteration))


def _iterated(
    show: Callable[[int, str, int], None], done: int, name: str, iteration: int, _: float
) -> None:
    show(done, name, iteration)
