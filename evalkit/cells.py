"""One cell of a run, a checkpoint and a batch: how it is drawn, scored and accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from evalkit.errors import EvalkitError
from evalkit.linearization import linearize
from evalkit.linearization.forward import Inputs, cast
from evalkit.machine import versions
from evalkit.metrics import batch_metrics
from evalkit.scoring import score_linearization, to_frame
from evalkit.settings import Settings
from evalkit.tables import KEY_COLUMNS
from evalkit.tasks.task import user_code
from evalkit.version import __version__


@dataclass(frozen=True)
class Cell:
    """What the rows of a run are keyed by; the fields are ``KEY_COLUMNS`` in their order.

    Attributes:
        checkpoint: its name.
        step: optimiser steps taken.
        progress: share of training done, 0 to 1.
        batch: number of the batch, from 0.
    """

    checkpoint: str
    step: int
    progress: float
    batch: int


def draw_batch(num_samples: int, batch_size: int, seed: int, batch: int) -> Tensor:
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


def on_device(values: Any, device: str | torch.device) -> Any:
    """Return tensors of any nesting on a device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, values)


def score_cell(
    model: nn.Module,
    batch: tuple[Inputs, Tensor],
    likelihood: str,
    settings: Settings,
    cell: Cell,
    task: str,
    on_iteration: Callable[[int, float], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of one checkpoint and one batch: scores, and the batch's own metrics.

    Args:
        model: holds the checkpoint; in eval mode, on the device of the batch.
        batch: inputs and targets.
        likelihood: what the model's outputs mean.
        settings: methods, dampings, seed, precision.
        cell: what the rows are keyed by.
        task: what sentences about errors call the task.
        on_iteration: called by iterative methods with the iteration and its gamma.

    Raises:
        EvalkitError: the batch cannot be scored; the sentence names the cell.
    """
    place = f"checkpoint '{cell.checkpoint}', batch {cell.batch}"
    try:
        with user_code(f"the scoring of task '{task}'"):
            lin = linearize(model, *batch, likelihood, settings.micro_batch_size, settings.dtype)
            # The labels that methods sample are paired between checkpoints too.
            seed = batch_seed(settings.seed, cell.batch, "methods")
            rows = score_linearization(
                lin,
                settings.methods,
                settings.dampings,
                seed,
                on_iteration,
                again=settings.dtype is None,
            )
            metrics = pd.DataFrame([asdict(batch_metrics(lin))])
    except EvalkitError as error:
        raise EvalkitError(f"{place}: {error}") from error
    return _keyed(cell, to_frame(rows)), _keyed(cell, metrics)


def _keyed(cell: Cell, frame: pd.DataFrame) -> pd.DataFrame:
    for position, (column, value) in enumerate(zip(KEY_COLUMNS, astuple(cell), strict=True)):
        frame.insert(position, column, value)
    return frame


def describe_run(
    model: nn.Module,
    task: str,
    likelihood: str,
    settings: Settings,
    folder: str | Path,
    checkpoints: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what ``run.json`` says of a run that starts now.

    Args:
        model: that is scored.
        task: what it is called.
        likelihood: what its outputs mean.
        settings: of the run.
        folder: where the checkpoints lie.
        checkpoints: name, step, progress, sha256 and more of each.

    Raises:
        EvalkitError: the model has no parameters.
    """
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise EvalkitError(
            f"expected a model with parameters in task '{task}', found none; check the task"
        )
    return {
        "evalkit": __version__,
        "versions": versions(),
        "task": task,
        "trajectory": str(folder),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "settings": {
            **asdict(settings),
            "likelihood": likelihood,
            "dtype": settings.dtype or str(cast(parameter.detach(), None).dtype)[len("torch.") :],
            "device": str(parameter.device),
            "threads": torch.get_num_threads(),
        },
        "checkpoints": list(checkpoints),
        "started": now(),
        "finished": None,
        "seconds": None,
    }


def now() -> str:
    """Return the time as ``run.json`` writes it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
