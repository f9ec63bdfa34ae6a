"""Wide multilayer perceptrons on pictures: the paper's on CIFAR-10, and one on Fashion-MNIST."""

from __future__ import annotations

import gzip
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evalkit.errors import EvalkitError
from evalkit.tasks.images import Pictures, scaled
from evalkit.tasks.pretrained import check_number
from evalkit.tasks.task import Recipe, Task

_WIDTH = 2048
_CLASSES = 10
# Adam, 60 epochs of batches of 64, as in the paper (appendix H.7).
_RECIPE = Recipe("adam", 1e-4, 0.0, epochs=60, batch_size=64, checkpoint_every=2)
_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_IDX_HEADER = {_IDX_IMAGES: 16, _IDX_LABELS: 8}


def build_model(pixels: int) -> nn.Module:
    """Return a perceptron with ReLU, two hidden layers of 2048: 10,510,346 parameters for 3072."""
    return nn.Sequential(
        nn.Linear(pixels, _WIDTH),
        nn.ReLU(),
        nn.Linear(_WIDTH, _WIDTH),
        nn.ReLU(),
        nn.Linear(_WIDTH, _CLASSES),
    )


def cifar10(data: str, samples: int) -> Task:
    """Return the paper's task."""
    pictures = Pictures(data, "label", samples)
    return Task(
        model=partial(build_model, 3 * 32 * 32),
        data=pictures.training,
        validation=pictures.validating,
        collate=_flat,
        recipe=_RECIPE,
    )


def _flat(inputs: object, targets: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(inputs, Tensor)
    return scaled(inputs).flatten(1), targets


def fashion_mnist(data: str, samples: int) -> Task:
    """Return the task on the pictures in a folder."""
    check_number("samples", samples, 0)
    return Task(
        model=partial(build_model, 28 * 28),
        data=partial(_read_fashion_mnist, Path(data), "train", samples),
        validation=partial(_read_fashion_mnist, Path(data), "t10k", 0),
        collate=_flat,
        recipe=_RECIPE,
    )


def _read_fashion_mnist(folder: Path, part: str, samples: int) -> tuple[Tensor, Tensor]:
    """Return pictures (N, 28, 28) uint8 and labels (N,) of the files as they are published."""
    images = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", _IDX_IMAGES).view(-1, 28, 28)
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", _IDX_LABELS).long()
    if not 0 < samples < len(labels):
        return images, labels
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:samples]
    return images[chosen], labels[chosen]


def _read_idx(path: Path, magic: int) -> Tensor:
    """Return the bytes of a gzipped IDX file behind its header."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise EvalkitError(
            f"expected the files of Fashion-MNIST, found that '{path}' cannot be read ({error}); "
            "install Debian's dataset-fashion-mnist, or pass their folder as "
            "`settings={'data': DIR}`"
        ) from error
    if int.from_bytes(content[:4], "big") != magic:
        raise EvalkitError(
            f"expected an IDX file with the number {magic} at '{path}', found another format; "
            "copy the file again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=_IDX_HEADER[magic]).copy())
