"""The main job: every checkpoint of a trajectory, scored on the same batches, into a RUN folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils._pytree import tree_map

from evalkit import likelihoods
from evalkit.checkpoints import Checkpoint, Trajectory, load_into, verify_trajectory
from evalkit.errors import EvalkitError
from evalkit.forward import Inputs, cast
from evalkit.linearization import linearize
from evalkit.machine import versions
from evalkit.metrics import batch_metrics
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
from evalkit.scoring import check_request, score_linearization, to_frame
from evalkit.settings import Settings
from evalkit.tables import KEY_COLUMNS
from evalkit.tasks import Samples, Task
from evalkit.tasks.task import user_code
from evalkit.version import __version__


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
            holds a run of other settings.
    """
    folder = Path(folder)
    check_request(settings.methods, settings.dampings)
    samples = samples_to_score(task, settings.batch_size)
    device = check_device(settings.device)
    model = task.build_model(settings.seed).eval().to(device)
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
            load_into(model, checkpoint)
        iterated = partial(_iterated, report, checkpoint.name)
        for batch in missing:
            scores, batches = _score_cell(
                model, task, samples, settings, checkpoint, batch, iterated
            )
            if not (folder / PROVENANCE_FILE).exists():
                create_run(folder, provenance)
            append_rows(folder, scores, batches)
            done.add((checkpoint.name, batch))
            report(checkpoint.name)
    sort_tables(folder)
    update_provenance(folder, finished=_now(), seconds=round(time.monotonic() - seconds, 3))


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
        torch.empty(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise EvalkitError(
            f"expected a device that torch can use with float64, found '{name}' ({reason}); "
            "use --device cpu"
        ) from error
    return device


def take_batch(samples: Samples, settings: Settings, batch: int) -> tuple[Inputs, torch.Tensor]:
    """Return inputs and targets of one batch, on the device of the evaluation."""
    indices = draw_batch(len(samples), settings.batch_size, settings.seed, batch)
    taken: tuple[Inputs, torch.Tensor] = tree_map(
        lambda leaf: leaf.to(settings.device) if isinstance(leaf, torch.Tensor) else leaf,
        samples.take(indices),
    )
    return taken


def draw_batch(num_samples: int, batch_size: int, seed: int, batch: int) -> torch.Tensor:
    """Return the sample indices of one batch, without repeats: (batch_size,) integers.

    Each batch has a generator of its own, so that it is the same at every checkpoint, whatever
    else is scored and however many batches there are.

    Args:
        num_samples: samples to draw from.
        batch_size: how many to draw.
        seed: of the study.
        batch: number of the batch, from 0.
    """
    generator = torch.Generator().manual_seed(batch_seed(seed, batch, "samples"))
    return torch.randperm(num_samples, generator=generator)[:batch_size]


def batch_seed(seed: int, batch: int, use: str) -> int:
    """Return a seed for one use in one batch; a hash keeps neighbouring seeds unrelated."""
    digest = hashlib.sha256(f"{seed}/{batch}/{use}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _score_cell(
    model: nn.Module,
    task: Task,
    samples: Samples,
    settings: Settings,
    checkpoint: Checkpoint,
    batch: int,
    on_iteration: Callable[[int, float], None],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of one checkpoint and one batch: scores, and the batch's own metrics."""
    place = f"checkpoint '{checkpoint.name}', batch {batch}"
    inputs, targets = take_batch(samples, settings, batch)
    try:
        with user_code(f"the scoring of task '{task.name}'"):
            lin = linearize(
                model, inputs, targets, task.likelihood, settings.micro_batch_size, settings.dtype
            )
            # The labels that methods sample are paired between checkpoints too.
            seed = batch_seed(settings.seed, batch, "methods")
            rows = score_linearization(lin, settings.methods, settings.dampings, seed, on_iteration)
            metrics = pd.DataFrame([asdict(batch_metrics(lin))])
    except EvalkitError as error:
        raise EvalkitError(f"{place}: {error}") from error
    key = (checkpoint.name, checkpoint.step, checkpoint.progress, batch)
    return _keyed(key, to_frame(rows)), _keyed(key, metrics)


def _keyed(key: tuple[Any, ...], frame: pd.DataFrame) -> pd.DataFrame:
    for position, (column, value) in enumerate(zip(KEY_COLUMNS, key, strict=True)):
        frame.insert(position, column, value)
    return frame


def _provenance(
    trajectory: Trajectory, task: Task, settings: Settings, model: nn.Module
) -> dict[str, Any]:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise EvalkitError(
            f"expected a model with parameters in task '{task.name}', found none; check the task"
        )
    return {
        "evalkit": __version__,
        "versions": versions(),
        "task": task.name,
        "trajectory": str(trajectory.folder),
        "settings": {
            **asdict(settings),
            "likelihood": task.likelihood,
            "dtype": settings.dtype or str(cast(parameter.detach(), None).dtype)[len("torch.") :],
            "device": str(parameter.device),
            "threads": torch.get_num_threads(),
        },
        "checkpoints": [
            {key: value for key, value in asdict(checkpoint).items() if key != "path"}
            for checkpoint in trajectory.checkpoints
        ],
        "started": _now(),
        "finished": None,
        "seconds": None,
    }


def _resume(folder: Path, provenance: dict[str, Any]) -> set[tuple[str, int]]:
    """Return the cells that an earlier start finished; it must have been the same study.

    Raises:
        EvalkitError: the folder holds a run that differs in more than the number of batches.
    """
    if not (folder / PROVENANCE_FILE).exists():
        return set()
    earlier = read_provenance(folder)
    for name, now in _identity(provenance).items():
        before = _identity(earlier).get(name)
        if before != now:
            raise EvalkitError(
                f"expected a new folder, or a run to go on with, found '{folder}' with another "
                f"{name}: {_short(before)} instead of {_short(now)}; choose another --out"
            )
    repair(folder)
    if earlier["settings"]["batches"] < provenance["settings"]["batches"]:
        update_provenance(folder, settings=provenance["settings"], finished=None)
    return finished_cells(folder)


def _identity(provenance: dict[str, Any]) -> dict[str, Any]:
    """Return what makes two studies the same, but for the number of batches."""
    settings = provenance.get("settings", {})
    identity = {name: settings.get(name) for name in ("batch_size", "seed", "likelihood", "dtype")}
    for name in ("methods", "dampings"):
        identity[name] = list(settings.get(name, ()))
    identity["evalkit"] = provenance.get("evalkit")
    identity["task"] = provenance.get("task")
    identity["checkpoints"] = [
        [item.get(key) for key in ("name", "step", "progress", "sha256")]
        for item in provenance.get("checkpoints", ())
    ]
    return identity


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
