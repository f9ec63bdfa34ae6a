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
from evalkit.cells import Cell, describe_run, draw_batch, now, on_device, score_cell
from evalkit.checkpoints import Checkpoint, Trajectory, load_into, verify_trajectory
from evalkit.checkpoints.adapters import model_for
from evalkit.errors import EvalkitError, reason, shortened
from evalkit.linearization.forward import Inputs
from evalkit.machine import sources
from evalkit.run import (
    PROVENANCE_FILE,
    append_rows,
    create_run,
    finished_cells,
    read_provenance,
    repair,
    sort_tables,
    update_provenance,
)
from evalkit.scoring import check_request
from evalkit.settings import Settings
from evalkit.tables import check_writable
from evalkit.tasks import Samples, Task
from evalkit.updates.registry import function_of


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


def run_study(
    trajectory: Trajectory,
    task: Task,
    settings: Settings,
    folder: str | Path,
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """Score every checkpoint on the same batches and write the RUN folder.

    Everything is verified before the first score, and the folder appears with the first finished
    cell. A study that was interrupted goes on where it stopped when it is called again with the
    same arguments; more batches extend it.

    Args:
        trajectory: the checkpoints.
        task: the model and the training samples that batches are drawn from.
        settings: methods, dampings, batches, seed.
        folder: of the run; new, or one that these arguments started.
        on_progress: called when the study starts, at every iteration of a solver and after every
            cell.

    Raises:
        EvalkitError: the arguments do not fit together, a checkpoint cannot be used, or the folder
            holds a run of other settings or cannot be written to.
    """
    folder = Path(folder)
    check_request(settings.methods, settings.dampings)
    samples = samples_to_score(task, settings.batch_size)
    device = check_device(settings.device)
    model = model_for(trajectory, task, settings.seed).eval().to(device)
    samples = task.fit_labels(samples, model)
    verify_trajectory(trajectory, model)
    provenance = _provenance(trajectory, task, settings, model)
    done = _resume(folder, provenance)
    total = len(trajectory.checkpoints) * settings.batches
    seconds = time.monotonic()

    def report(checkpoint: str, iteration: int = 0) -> None:
        if on_progress is not None:
            on_progress(Progress(len(done), total, checkpoint, iteration))

    report(trajectory.checkpoints[0].name)
    for checkpoint in trajectory.checkpoints:
        missing = [b for b in range(settings.batches) if (checkpoint.name, b) not in done]
        if missing:
            check_writable(folder)
            load_into(model, checkpoint)
        iterated = partial(_iterated, report, checkpoint.name)
        for batch in missing:
            taken = take_batch(samples, settings, batch)
            cell = Cell(checkpoint.name, checkpoint.step, checkpoint.progress, batch)
            scores, batches = score_cell(
                model, taken, task.likelihood, settings, cell, task.name, iterated
            )
            if not (folder / PROVENANCE_FILE).exists():
                create_run(folder, provenance)
            append_rows(folder, scores, batches)
            done.add((checkpoint.name, batch))
            report(checkpoint.name)
    sort_tables(folder)
    _finish(folder, done, time.monotonic() - seconds)


def _finish(folder: Path, done: set[tuple[str, int]], seconds: float) -> None:
    """Mark a run as finished that was not, if it has every batch that it was ever asked for."""
    provenance = read_provenance(folder)
    names = [item["name"] for item in provenance["checkpoints"]]
    wanted = itertools.product(names, range(provenance["settings"]["batches"]))
    if not provenance.get("finished") and done.issuperset(wanted):
        seconds += provenance.get("seconds") or 0.0
        update_provenance(folder, finished=now(), seconds=round(seconds, 3))


def _iterated(report: Callable[[str, int], None], name: str, iteration: int, _: float) -> None:
    report(name, iteration)


def samples_to_score(task: Task, batch_size: int) -> Samples:
    """Return the training samples of a task, checked.

    Raises:
        EvalkitError: there are fewer than the batch size, or some have no label.
    """
    samples = task.training_samples()
    if batch_size > len(samples):
        raise EvalkitError(
            f"expected a batch size of at most {len(samples)}, the training samples of task "
            f"'{task.name}', found {batch_size}; lower --batch-size"
        )
    if likelihoods.get(task.likelihood).ignores_labels:
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
            "use --device cpu"
        ) from error
    return device


def take_batch(samples: Samples, settings: Settings, batch: int) -> tuple[Inputs, torch.Tensor]:
    """Return inputs and targets of one batch, on the device of the evaluation."""
    indices = draw_batch(len(samples), settings.batch_size, settings.seed, batch)
    taken: tuple[Inputs, torch.Tensor] = on_device(samples.take(indices), settings.device)
    return taken


def _provenance(
    trajectory: Trajectory, task: Task, settings: Settings, model: nn.Module
) -> dict[str, Any]:
    checkpoints = [checkpoint_entry(checkpoint) for checkpoint in trajectory.checkpoints]
    described = describe_run(
        model, task.name, task.likelihood, settings, trajectory.folder, checkpoints
    )
    manifest, methods = trajectory.manifest or {}, settings.methods
    origin = {
        "task_settings": dict(task.settings),
        "code": sources((task.model, task.data, *map(function_of, methods))),
        "base_model": trajectory.base_model,
        "training": manifest.get("recipe"),
    }
    return {**described, **{key: value for key, value in origin.items() if value}}


def checkpoint_entry(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what ``run.json`` says of a checkpoint."""
    return {key: value for key, value in asdict(checkpoint).items() if key != "path"}


def _resume(folder: Path, provenance: dict[str, Any]) -> set[tuple[str, int]]:
    """Return the cells that an earlier start finished; it must have been the same study.

    Raises:
        EvalkitError: the folder holds a run that differs in more than the number of batches.
    """
    if not (folder / PROVENANCE_FILE).exists():
        return set()
    earlier = read_provenance(folder)
    check_same_run(folder, earlier, provenance)
    repair(folder)
    if earlier["settings"]["batches"] < provenance["settings"]["batches"]:
        update_provenance(folder, settings=provenance["settings"], finished=None)
    return finished_cells(folder)


def check_same_run(folder: Path, earlier: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Check that a start goes on with what ``folder`` holds, but for the number of batches.

    Raises:
        EvalkitError: it differs in another respect.
    """
    try:
        before = _identity(earlier)
    except (AttributeError, KeyError, TypeError) as error:
        raise EvalkitError(
            f"expected the {PROVENANCE_FILE} of a run in '{folder}', found one that does not list "
            "its settings and checkpoints; choose another folder"
        ) from error
    for name, found in _identity(provenance).items():
        if before[name] != found:
            raise EvalkitError(
                f"expected a new folder, or a run to go on with, found '{folder}' with another "
                f"{name}: {shortened(str(before[name]), 60)} instead of "
                f"{shortened(str(found), 60)}; choose another folder"
            )


def _identity(provenance: dict[str, Any]) -> dict[str, Any]:
    """Return what makes two studies the same, but for the number of batches."""
    settings = provenance.get("settings", {})
    if type(settings["batches"]) is not int:
        raise TypeError("batches")
    identity = {name: settings.get(name) for name in ("batch_size", "seed", "likelihood", "dtype")}
    for name in ("methods", "dampings"):
        identity[name] = list(settings.get(name, ()))
    identity["evalkit"] = provenance.get("evalkit")
    identity["task"] = provenance.get("task")
    identity["task_settings"] = provenance.get("task_settings")
    identity["code"] = provenance.get("code")
    identity["checkpoints"] = [
        [item.get(key) for key in ("name", "step", "progress", "sha256", "key")]
        for item in provenance.get("checkpoints", ())
    ]
    return identity
