"""Handwritten digits with a small multilayer perceptron."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evalkit.tasks.task import Recipe, Task

_SPLIT_SEED = 0
_TRAINING_SHARE = 0.8


def build_model() -> nn.Module:
    """Return a 64-64-64-10 perceptron with ReLU: 8,970 parameters."""
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def training_data() -> tuple[Tensor, Tensor]:
    """Return 1,437 images (1437, 64) with pixels in [0, 1] and their digits (1437,)."""
    images, digits, split = _digits()
    return images[:split], digits[:split]


def validation_data() -> tuple[Tensor, Tensor]:
    """Return the 360 other images (360, 64) and their digits (360,)."""
    images, digits, split = _digits()
    return images[split:], digits[split:]


def _digits() -> tuple[Tensor, Tensor, int]:
    """Return the scikit-learn digits in a fixed random order, and where validation starts."""
    pixels, labels = _table()
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    order = torch.randperm(len(labels), generator=generator)
    images = torch.tensor(pixels / 16.0, dtype=torch.float32)[order]  # grey levels are 0..16
    digits = torch.tensor(labels, dtype=torch.int64)[order]
    return images, digits, int(_TRAINING_SHARE * len(order))


def _table() -> tuple[np.ndarray, np.ndarray]:
    """Return grey levels (1797, 64) and digits (1797,), as ``load_digits`` does.

    The file of scikit-learn is read without its package, which takes 1.5 seconds to import.
    """
    found = importlib.util.find_spec("sklearn")
    places = (found and found.submodule_search_locations) or ()
    for file in (Path(place) / "datasets" / "data" / "digits.csv.gz" for place in places):
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.data, bunch.target


task = Task(
    model=build_model,
    data=training_data,
    validation=validation_data,
    likelihood="categorical",
    recipe=Recipe(
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.01,
        epochs=40,
        batch_size=64,
        checkpoint_every=4,
    ),
    name="digits-mlp",
)
