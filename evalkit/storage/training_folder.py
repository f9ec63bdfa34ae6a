"""The folder of a training as tables: what its manifest says, and a row per optimiser step.

``trajectory.json`` lists the checkpoints; ``history.csv`` has a row per step of the optimiser.
Nothing here opens a checkpoint, so that no torch is needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from evalkit.errors import EvalkitError, shortened
from evalkit.storage.history import HISTORY_FILE, read_history
from evalkit.storage.json_files import read_object

MANIFEST_FILE = "trajectory.json"
UNFINISHED_FILE = "unfinished.json"
"""What the manifest of a training is called until the training is finished."""
_PLAIN = (str, bool, int, float)
_NUMBERS = ("learning_rate", "weight_decay", "damping", "momentum", "epochs", "batch_size")
_KINDS = dict.fromkeys(_NUMBERS, (int, float)) | {"schedule": (str,), "on_failure": (str,)}
"""What a recipe may hold; any of them may be none."""
_TRAIN_AGAIN = "train again into a new folder with 'evalkit train'"


@dataclass(frozen=True)
class Training:
    """What the folder of a training says of it.

    Attributes:
        folder: where it lies.
        task: what was trained, None where the manifest does not say.
        settings: those of the task.
        recipe: how it was trained: optimizer, learning rate, epochs, ...
        seed: of initial values and of the order of the samples.
        checkpoints: columns progress, training_loss and validation_accuracy, by rising progress.
        history: the columns of :class:`evalkit.storage.rows.TrainingStep`, None where there is no
            such file.
    """

    folder: Path
    task: str | None
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    seed: int | None
    checkpoints: pd.DataFrame
    history: pd.DataFrame | None

    @property
    def optimizer(self) -> str:
        """The name of the optimizer, as ``evalkit train`` takes it."""
        return str(self.recipe["optimizer"])


def is_training(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is one of a training, finished or not."""
    return any((Path(folder) / name).is_file() for name in (MANIFEST_FILE, UNFINISHED_FILE))


def read_training(folder: str | os.PathLike[str]) -> Training:
    """Return what the folder of ``evalkit train`` says of the training.

    Raises:
        EvalkitError: no such folder, no manifest of ``evalkit train``, or a file that cannot be
            read.
    """
    folder = Path(folder)
    path = folder / MANIFEST_FILE
    if not os.path.lexists(path):
        found, advice = "none", "name the folder of a training"
        if (folder / UNFINISHED_FILE).is_file():
            found = "a training that was interrupted"
            advice = "go on with it by the same 'evalkit train' command with `resume`"
        elif not folder.is_dir():
            found = "no such folder"
        raise EvalkitError(
            f"expected '{path}', which 'evalkit train' writes, found {found}; {advice}"
        )
    manifest = read_object(path, _TRAIN_AGAIN)
    recipe = manifest.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("optimizer"), str):
        raise _wrong(path, "a recipe with an optimizer", recipe)
    for name, value in recipe.items():
        if value is not None and not isinstance(value, _KINDS.get(name, _PLAIN)):
            raise _wrong(path, f"another value of '{name}' in the recipe", value)
    task, settings, seed = (manifest.get(name) for name in ("task", "settings", "seed"))
    return Training(
        folder,
        task if isinstance(task, str) else None,
        _plain_settings(settings),
        recipe,
        seed if isinstance(seed, int) else None,
        _checkpoints(path, manifest.get("checkpoints")),
        read_history(folder) if os.path.lexists(folder / HISTORY_FILE) else None,
    )


def _plain_settings(settings: Any) -> dict[str, Any]:
    """Return the settings of a task that are such, none of what are none."""
    known = settings if isinstance(settings, dict) else {}
    return {name: value for name, value in known.items() if isinstance(value, _PLAIN)}


def _checkpoints(path: Path, listed: Any) -> pd.DataFrame:
    """Return the numbers of a manifest's checkpoints, NaN where it has none."""
    entries = listed if isinstance(listed, list) and listed else [None]
    rows = []
    for entry in entries:
        if not isinstance(entry, dict) or not math.isfinite(_number(entry.get("progress"))):
            raise _wrong(path, "a list of checkpoints, each with its progress", entry)
        names = ("progress", "training_loss", "validation_accuracy")
        rows.append({name: _number(entry.get(name)) for name in names})
    return pd.DataFrame(rows).sort_values("progress", kind="stable", ignore_index=True)


def _number(value: Any) -> float:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain else math.nan


def _wrong(path: Path, expected: str, found: Any) -> EvalkitError:
    return EvalkitError(
        f"expected {expected} in '{path}', found {shortened(repr(found))}; {_TRAIN_AGAIN}"
    )
