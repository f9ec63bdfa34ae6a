"""One cell of a run, a checkpoint and a batch: how it is drawn, scored and accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from evalkit.errors import EvalkitError
from evalkit.linearization import Linearization, linearize
from evalkit.linearization.forward import cast
from evalkit.linearization.given import Inputs
from evalkit.linearization.precision import without_autocast
from evalkit.machine import versions
from evalkit.metrics import batch_metrics
from evalkit.scoring import score_linearization
from evalkit.settings import Settings
from evalkit.storage.columns import frame_of
from evalkit.storage.rows import Batch, Cell, Score
from evalkit.tasks.samples import ItemSamples, Samples
from evalkit.tasks.user_code import all_seeded, user_code
from evalkit.version import __version__


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


def draw(
    samples: Samples | ItemSamples, batch_size: int, seed: int, batch: int
) -> tuple[Inputs, Tensor]:
    """Return inputs and targets of one batch: the same whenever it is drawn.

    What a data set or a collate function draws at random comes from generators of the batch; those
    of torch, numpy and Python are as they were afterwards.

    Args:
        samples: to draw from.
        batch_size: how many to draw.
        seed: of the study.
        batch: number of the batch, from 0.
    """
    indices = draw_batch(len(samples), batch_size, seed, batch)
    with all_seeded(batch_seed(seed, batch, "data")):
        return samples.take(indices)


def data_hash(inputs: Any, targets: Any) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of a batch, in hexadecimal digits."""
    digest = hashlib.sha256()
    _add_to(digest, "inputs", inputs)
    _add_to(digest, "targets", targets)
    return digest.hexdigest()


def _add_to(digest: Any, name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            _add_to(digest, f"{name}[{key!r}]", value[key])
    elif isinstance(value, (tuple, list)):
        for place, item in enumerate(value):
            _add_to(digest, f"{name}[{place}]", item)
    elif isinstance(value, Tensor):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        dense = value.detach().cpu().to_dense() if value.layout != torch.strided else value
        plain = dense.detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    else:
        digest.update(f"{name} {value!r}".encode())


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
    pairs: Collection[tuple[str, float]] | None = None,
    on_gradient: Callable[[Linearization], None] | None = None,
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
        pairs: of the methods and dampings of ``settings``, those to score; None for all.
        on_gradient: called before the first method, when the gradient is known.

    Raises:
        EvalkitError: the batch cannot be scored; the sentence names the cell.
    """
    place = f"checkpoint '{cell.checkpoint}', batch {cell.batch}"
    try:
        with user_code(f"the scoring of task '{task}'"), without_autocast():
            digest = data_hash(*batch)
            lin = linearize(model, *batch, likelihood, settings.micro_batch_size, settings.dtype)
            if on_gradient is not None:
                _ = lin.gradient
                on_gradient(lin)
            # The labels that methods sample are paired between checkpoints too.
            seed = batch_seed(settings.seed, cell.batch, "methods")
            rows = []
            for methods, dampings in _blocks(settings, pairs):
                again = settings.dtype is None
                rows += score_linearization(lin, methods, dampings, seed, on_iteration, again=again)
            metrics = batch_metrics(lin, digest)
    except EvalkitError as error:
        raise EvalkitError(f"{place}: {error}") from error
    return _keyed(cell, rows, Score), _keyed(cell, [metrics], Batch)


def _blocks(
    settings: Settings, pairs: Collection[tuple[str, float]] | None
) -> list[tuple[list[str], list[float]]]:
    """Return methods with the dampings that they have in common, which cover the pairs.

    The pairs of a whole request are one block, as they are where a run is not extended.
    """
    blocks: dict[tuple[float, ...], list[str]] = {}
    for method in settings.methods:
        dampings = tuple(d for d in settings.dampings if pairs is None or (method, d) in pairs)
        if dampings:
            blocks.setdefault(dampings, []).append(method)
    return [(methods, list(dampings)) for dampings, methods in blocks.items()]


def _keyed(cell: Cell, rows: Sequence[Any], kind: type) -> pd.DataFrame:
    """Return rows as a table, behind the columns of their cell."""
    keys = frame_of([cell] * len(rows), Cell)
    return pd.concat([keys, frame_of(rows, kind)], axis="columns")


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
