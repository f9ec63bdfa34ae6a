"""The batches of a study: which samples they hold, and the hash of what was drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evalkit import likelihoods
from evalkit.errors import EvalkitError
from evalkit.evaluation.devices import on_device
from evalkit.evaluation.given import Inputs
from evalkit.settings import Settings
from evalkit.tasks import Samples, Task
from evalkit.tasks.samples import ItemSamples
from evalkit.tasks.user_code import all_seeded


def draw_batch(num_samples: int, batch_size: int, seed: int, batch: int) -> Tensor:
    """Return the sample indices of one batch, without repeats: (batch_size,) integers.

    Each batch has a generator of its own, so that it is the same at every checkpoint, whatever
    else is scored and however many batches there are.

    Args:
        num_samples: samples to draw from.
        batch_size: how many to draw.
        seed: the seed of the study.
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
        seed: the seed of the study.
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


def take_batch(
    samples: Samples | ItemSamples, settings: Settings, batch: int
) -> tuple[Inputs, torch.Tensor]:
    """Return inputs and targets of one batch, on the device of the evaluation."""
    drawn = draw(samples, settings.batch_size, settings.seed, batch)
    taken: tuple[Inputs, torch.Tensor] = on_device(drawn, settings.device)
    return taken
