"""The main job: every checkpoint of a trajectory, scored on the same batches, into a RUN folder."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evalkit import likelihoods
from evalkit.checkpoints import Checkpoint, Trajectory, load_into, verify_trajectory
from evalkit.checkpoints.adapters import model_for
from evalkit.errors import EvalkitError, reason
from evalkit.linearization import Linearization
from evalkit.linearization.given import Inputs
from evalkit.scoring import check_request
from evalkit.settings import Settings
from evalkit.storage.columns import check_name
from evalkit.storage.files import check_writable
from evalkit.storage.rows import Cell
from evalkit.storage.run_folder import PROVENANCE_FILE, append_rows, create_run, sort_tables
from evalkit.study.cells import describe_run, draw, on_device, score_cell
from evalkit.study.estimate import cell_seconds, free_outputs, product_seconds
from evalkit.study.identity import check_same_data
from evalkit.study.notes import notes_on
from evalkit.study.resuming import code_of, finish, resume
from evalkit.tasks import Samples, Task
from evalkit.tasks.samples import ItemSamples


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        done: finished cells (one checkpoint, one batch), those of an earlier start included.
        total: cells of the study.
        checkpoint: the name of the checkpoint that is scored.
        iteration: of the solver that is running, 0 when none is.
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
        folder: of the run; new, or one that these arguments started.
        on_progress: called when the study starts, at every iteration of a solver and after every
            cell.
        on_start: called once, before the first score, unless there is nothing to score.

    Raises:
        EvalkitError: the arguments do not fit together, a checkpoint cannot be used, or the folder
            holds a run of other settings, code or data, or cannot be written to.
    """
    folder = Path(folder)
    check_request(settings.methods, settings.dampings)
    for checkpoint in trajectory.checkpoints:
        check_name("checkpoint", checkpoint.name)
    samples = samples_to_score(task, settings.batch_size)
    device = check_device(settings.device)
    model = model_for(trajectory, task, settings.seed).eval().to(device)
    samples = task.fit_labels(samples, model)
    verify_trajectory(trajectory, model)
    provenance = _provenance(trajectory, task, settings, model, len(samples))
    held = resume(folder, provenance, task, samples, settings)
    wanted = set(itertools.product(settings.methods, settings.dampings))
    names = {checkpoint.name for checkpoint in trajectory.checkpoints}
    total = len(names) * settings.batches
    finished = held.whole(names, settings.batches, wanted)
    started = time.monotonic()

    def report(checkpoint: str, iteration: int = 0) -> None:
        if on_progress is not None:
            on_progress(Progress(finished, total, checkpoint, iteration))

    def begin(lin: Linearization) -> None:
        provenance["outputs_per_sample"] = free_outputs(lin) / lin.num_samples
        if on_start is not None:
            left, dampings = total - finished, len(settings.dampings)
            seconds = left * cell_seconds(product_seconds(lin), settings.methods, dampings)
            on_start(Start(left, seconds, notes_on(provenance)))

    report(trajectory.checkpoints[0].name)
    begun = False
    for checkpoint in trajectory.checkpoints:
        loaded = False
        iterated = partial(_iterated, report, checkpoint.name)
        for batch in range(settings.batches):
            rows = held.rows.get((checkpoint.name, batch))
            missing = wanted - (rows or set())
            if not missing:
                continue
            if not loaded:
                check_writable(folder)
                load_into(model, checkpoint)
                loaded = True
            taken = take_batch(samples, settings, batch)
            scores, batches = score_cell(
                model,
                taken,
                task.likelihood,
                settings,
                Cell(checkpoint.name, checkpoint.step, checkpoint.progress, batch),
                task.name,
                iterated,
                missing,
                None if begun else begin,
            )
            begun = True
            digest = str(batches["data_sha256"].iloc[0])
            check_same_data(folder, batch, held.data.setdefault(batch, digest), digest)
            if not (folder / PROVENANCE_FILE).exists():
                create_run(folder, provenance)
            append_rows(folder, scores, batches if rows is None else batches.iloc[:0])
            held.rows.setdefault((checkpoint.name, batch), set()).update(missing)
            finished += 1
            report(checkpoint.name)
    sort_tables(folder)
    finish(folder, held, time.monotonic() - started)


def _iterated(report: Callable[[str, int], None], name: str, iteration: int, _: float) -> None:
    report(name, iteration)


def samples_to_score(task: Task, batch_size: int) -> Samples | ItemSamples:
    """Return the training samples of a task, checked.

    Raises:
        EvalkitError: there are fewer than the batch size, or some have no label.
    """
    samples = task.training_samples()
    if batch_size > len(samples):
        raise EvalkitError(
            f"expected a batch size of at most {len(samples)}, the training samples of task "
            f"'{task.name}', found {batch_size}; lower `batch_size`"
        )
    # A data set of single items is not read through; its batches are checked when they are drawn.
    if isinstance(samples, Samples) and likelihoods.get(task.likelihood).ignores_labels:
        likelihoods.check_labels(samples.targets != likelihoods.IGNORED_LABEL)
    return samples


def check_device(name: str) -> torch.device:
    """Return a device that can be used.

    Raises:
        EvalkitError: torch does not know it, or finds none of its kind.
    """
    try:
        device = torch.device(name)
        torch.empty(1, dtype=torch.float64, device=device).tolist()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise EvalkitError(
            f"expected a device that torch can use with float64, found '{name}' ({reason(error)}); "
            "use `device=cpu`"
        ) from error
    return device


def take_batch(
    samples: Samples | ItemSamples, settings: Settings, batch: int
) -> tuple[Inputs, torch.Tensor]:
    """Return inputs and targets of one batch, on the device of the evaluation."""
    drawn = draw(samples, settings.batch_size, settings.seed, batch)
    taken: tuple[Inputs, torch.Tensor] = on_device(drawn, settings.device)
    return taken


def _provenance(
    trajectory: Trajectory, task: Task, settings: Settings, model: nn.Module, training_samples: int
) -> dict[str, Any]:
    checkpoints = [checkpoint_entry(checkpoint) for checkpoint in trajectory.checkpoints]
    described = describe_run(
        model, task.name, task.likelihood, settings, trajectory.folder, checkpoints
    )
    manifest = trajectory.manifest or {}
    origin = {
        "training_samples": training_samples,
        "task_settings": dict(task.settings),
        "code": code_of(task, settings.methods),
        "base_model": trajectory.base_model,
        "training": manifest.get("recipe"),
    }
    return {**described, **{key: value for key, value in origin.items() if value}}


def checkpoint_entry(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what ``run.json`` says of a checkpoint."""
    return {key: value for key, value in asdict(checkpoint).items() if key != "path"}
