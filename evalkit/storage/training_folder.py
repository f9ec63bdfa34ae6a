"""The folder of a training as tables: what its manifest says, and a row per optimiser step.

``trajectory.json`` lists the checkpoints; ``history.csv`` has a row per step of the optimiser.
Nothing here opens a checkpoint, so that no torch is needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from evalkit.errors import EvalkitError, shortened
from evalkit.storage.columns import Source, columns_of, parse_csv
from evalkit.storage.files import check_regular
from evalkit.storage.json_files import read_object
from evalkit.storage.rows import NEEDED, SIGNED

MANIFEST_FILE = "trajectory.json"
HISTORY_FILE = "history.csv"
_TRAIN_AGAIN = "train again into a new folder with 'evalkit train'"


@dataclass(frozen=True)
class Step:
    """One step of the optimiser: a row of ``history.csv``.

    Attributes:
        step: its number, from 1.
        epoch: the pass over the data that it belongs to, from 1.
        progress: share of the training that is done after it, up to 1.
        loss: mean loss of its batch before it.
        learning_rate: that it was taken with.
        skipped: steps that the optimiser has skipped so far; empty for one that counts none.
    """

    step: int = field(metadata=NEEDED)
    epoch: int = field(metadata=NEEDED)
    progress: float = field(metadata=NEEDED)
    loss: float = field(metadata=SIGNED)
    learning_rate: float
    skipped: int | None


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
        history: the columns of :class:`Step`, None where there is no such file.
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
    """Whether a folder has the manifest of a training."""
    return (Path(folder) / MANIFEST_FILE).is_file()


def read_training(folder: str | os.PathLike[str]) -> Training:
    """Return what the folder of ``evalkit train`` says of the training.

    Raises:
        EvalkitError: no such folder, no manifest of ``evalkit train``, or a file that cannot be
            read.
    """
    folder = Path(folder)
    path = folder / MANIFEST_FILE
    if not os.path.lexists(path):
        found = "none" if folder.is_dir() else "no such folder"
        raise EvalkitError(
            f"expected '{path}', which `evalkit train` writes, found {found}; name the folder of a "
            "training"
        )
    manifest = read_object(path, _TRAIN_AGAIN)
    recipe = manifest.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("optimizer"), str):
        raise _wrong(path, "a recipe with an optimizer", recipe)
    task, settings, seed = (manifest.get(name) for name in ("task", "settings", "seed"))
    return Training(
        folder,
        task if isinstance(task, str) else None,
        settings if isinstance(settings, dict) else {},
        recipe,
        seed if isinstance(seed, int) else None,
        _checkpoints(path, manifest.get("checkpoints")),
        _history(folder / HISTORY_FILE),
    )


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


def _history(path: Path) -> pd.DataFrame | None:
    if not os.path.lexists(path):
        return None
    check_regular(path, _TRAIN_AGAIN)
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvalkitError(f"expected text in {path}, found {error}; {_TRAIN_AGAIN}") from error
    whole = text[: text.rfind("\n") + 1]
    return parse_csv(whole, columns_of(Step), Source(path, _TRAIN_AGAIN))


def _wrong(path: Path, expected: str, found: Any) -> EvalkitError:
    return EvalkitError(
        f"expected {expected} in '{path}', found {shortened(repr(found))}; {_TRAIN_AGAIN}"
    )
