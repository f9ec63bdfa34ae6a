"""Loss and validation accuracy of trainings against progress, with their spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from evalkit.results.trainings import Contender, mean_and_deviation
from evalkit.storage.training_folder import Training

_BINS = 50
"""Points of a curve of losses; each is the mean over the steps of a part of the training."""


def loss_curves(found: Sequence[Contender]) -> pd.DataFrame:
    """Return the loss of the steps against progress, a row per contender and part of the training.

    Every part has a fiftieth of the progress, or as much as a step; its loss is the mean over its
    steps, and then over seeds.

    Returns:
        Columns optimizer (the contender), progress (the middle of the part), loss_mean, loss_std.
    """
    rows = []
    for contender in found:
        by_seed = [
            _binned(training.history) for training in contender.trainings if _has_steps(training)
        ]
        rows += _over_seeds(contender.name, by_seed, "loss")
    return pd.DataFrame(rows, columns=["optimizer", "progress", "loss_mean", "loss_std"])


def _has_steps(training: Training) -> bool:
    return training.history is not None and len(training.history) > 0


def _binned(history: pd.DataFrame | None) -> pd.Series:
    """Return the mean loss of each part of a history by the middle of its progress."""
    assert history is not None
    bins = min(_BINS, len(history))
    place = np.minimum(np.ceil(history["progress"].to_numpy(float) * bins), bins)
    means = history["loss"].groupby(place).mean()
    means.index = (means.index - 0.5) / bins
    return means


def accuracy_curves(found: Sequence[Contender]) -> pd.DataFrame:
    """Return the validation accuracy against progress, a row per contender and checkpoint.

    Returns:
        Columns optimizer (the contender), progress, validation_accuracy_mean and
        validation_accuracy_std over seeds; no rows where no accuracy is known.
    """
    column, rows = "validation_accuracy", []
    for contender in found:
        by_seed = [
            training.checkpoints.set_index("progress")[column].dropna()
            for training in contender.trainings
        ]
        rows += _over_seeds(contender.name, by_seed, column)
    names = ["optimizer", "progress", f"{column}_mean", f"{column}_std"]
    return pd.DataFrame(rows, columns=names)


def _over_seeds(name: str, by_seed: Sequence[pd.Series], column: str) -> list[dict[str, Any]]:
    """Return a row per progress that any seed has, with mean and deviation over the seeds."""
    if not by_seed:
        return []
    joined = pd.concat(by_seed, axis=1).sort_index()
    rows = []
    for progress, values in zip(joined.index, joined.to_numpy(float), strict=True):
        mean, deviation = mean_and_deviation(values)
        row = {"optimizer": name, "progress": progress}
        rows.append(row | {f"{column}_mean": mean, f"{column}_std": deviation})
    return rows
