"""Wide multilayer perceptrons on pictures: the paper's on CIFAR-10, and one on Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from evalkit.errors import EvalkitError
from evalkit.storage.files import check_regular
from evalkit.tasks.images import Pictures, scaled
from evalkit.tasks.pretrained import check_number
from evalkit.tasks.task import Recipe, Task

SIDE = 28
"""Height and width of a picture of Fashion-MNIST."""
_CLASSES = 10
# Adam, 60 epochs of batches of 64, as in the paper (appendix H.7).
_RECIPE = Recipe("adam", 1e-4, 0.0, epochs=60, batch_size=64, checkpoint_every=2)
_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_IDX_HEADER = {_IDX_IMAGES: 16, _IDX_LABELS: 8}
_MOST_UNPACKED = 32
_ALWAYS_UNPACKED = 16 * 2**20
"""What a file may unpack to, in its own size and in bytes; of MNIST it is five times as much."""


def build_model(pixels: int, widths: tuple[int, ...]) -> nn.Module:
    """Return a perceptron with ReLU: 10,510,346 parameters for 3072 pixels, widths 2048 and 2048.

    Args:
        pixels: numbers of a picture.
        widths: of the hidden layers.
    """
    layers: list[nn.Module] = []
    for width, following in pairwise((pixels, *widths, _CLASSES)):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def layer_widths(widths: str) -> tuple[int, ...]:
    """Return the widths of layers, written as in '400-200-100'."""
    parts = widths.split("-")
    if not all(part.isdecimal() for part in parts):
        raise EvalkitError(
            "expected the setting widths to be whole numbers with dashes between, "
            f"found '{widths}'; write them as in 32-16-8"
        )
    for part in parts:
        check_number("widths", int(part), 1)
    return tuple(int(part) for part in parts)


def cifar10(data: str, samples: int, widths: str, validation_samples: int) -> Task:
    """Return the paper's task."""
    pictures = Pictures(data, "label", samples, validation_samples)
    return Task(
        model=partial(build_model, 3 * 32 * 32, layer_widths(widths)),
        data=pictures.training,
        validation=pictures.validating,
        collate=_flat,
        recipe=_RECIPE,
    )


def _flat(inputs: object, targets: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(inputs, Tensor)
    return scaled(inputs).flatten(1), targets


def fashion_mnist(data: str, samples: int, widths: str, size: int) -> Task:
    """Return the task on the pictures in a folder.

    Args:
        data: the folder.
        samples: training samples, drawn at random; 0 for all.
        widths: of the hidden layers, see :func:`layer_widths`.
        size: height and width of the pictures, means over squares of the 28 x 28 pixels.
    """
    check_number("samples", samples, 0)
    if size < 1 or SIDE % size:
        raise EvalkitError(
            f"expected the setting size to divide {SIDE}, found {size}; pass 28, 14, 7 or 4"
        )
    return Task(
        model=partial(build_model, size * size, layer_widths(widths)),
        data=partial(_read_fashion_mnist, Path(data), "train", samples),
        validation=partial(_read_fashion_mnist, Path(data), "t10k", 0),
        collate=partial(_pooled, size),
        recipe=_RECIPE,
    )


def _pooled(size: int, inputs: object, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixels from -1 to 1 of pictures (N, 28, 28) of bytes: (N, size^2)."""
    assert isinstance(inputs, Tensor)
    pixels = scaled(inputs)
    if size < SIDE:
        pixels = functional.avg_pool2d(pixels[:, None], SIDE // size)
    return pixels.flatten(1), targets


def _read_fashion_mnist(folder: Path, part: str, samples: int) -> tuple[Tensor, Tensor]:
    """Return pictures (N, 28, 28) uint8 and labels (N,) of the files as they are published."""
    images = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", _IDX_IMAGES, (SIDE, SIDE))
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", _IDX_LABELS, ()).long()
    if not 0 < samples < len(labels):
        return images, labels
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:samples]
    return images[chosen], labels[chosen]


def _read_idx(path: Path, magic: int, shape: tuple[int, ...]) -> Tensor:
    """Return the bytes of a gzipped IDX file, (N, *shape), as many as its header says."""
    advice = "copy the file again"
    check_regular(path, advice)
    try:
        with gzip.open(path) as file:
            header = file.read(_IDX_HEADER[magic])
            sizes = [int.from_bytes(header[at : at + 4], "big") for at in range(0, len(header), 4)]
            if len(header) < _IDX_HEADER[magic] or [sizes[0], *sizes[2:]] != [magic, *shape]:
                raise EvalkitError(
                    f"expected an IDX file with the number {magic} and the shape "
                    f"{(*('N',), *shape)} at '{path}', found another format; {advice}"
                )
            count = math.prod(sizes[1:])
            # Compared before it is unpacked: a few bytes can unpack to gigabytes.
            if count > max(_ALWAYS_UNPACKED, _MOST_UNPACKED * path.stat().st_size):
                raise EvalkitError(
                    f"expected an IDX file about as large as its pictures at '{path}', found "
                    f"{count} bytes in one of {path.stat().st_size}; {advice}"
                )
            content = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise EvalkitError(
            f"expected the files of Fashion-MNIST, found that '{path}' cannot be read ({error}); "
            "install Debian's dataset-fashion-mnist, or pass their folder as "
            "`settings={'data': DIR}`"
        ) from error
    if len(content) != count:
        raise EvalkitError(
            f"expected {count} bytes in '{path}', as its header says, found "
            f"{'more' if len(content) > count else len(content)}; {advice}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy()).view(sizes[1], *shape)
