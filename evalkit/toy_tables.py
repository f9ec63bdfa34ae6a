"""The tables of a toy problem: landscape, field and trajectories, and what they were made with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from evalkit.errors import EvalkitError
from evalkit.storage.files import make_folder, write_atomically

SETTINGS_FILE = "toy.json"
COLUMNS = {
    "landscape": ("weight", "bias", "loss"),
    "field": ("method", "weight", "bias", "direction_weight", "direction_bias", "efficiency"),
    "trajectories": ("method", "start", "step", "weight", "bias", "loss"),
}
"""Columns of each table; its file is called like it, with the ending .csv."""
# Python's own float keeps every digit.
_NUMBERS = {
    column: int if column in ("start", "step") else float
    for columns in COLUMNS.values()
    for column in columns
    if column != "method"
}


@dataclass(frozen=True)
class Toy:
    """A toy problem as it is drawn.

    Attributes:
        landscape: the summed loss on a grid of parameters, the weight varying fastest.
        field: the direction d of each method on a coarser grid (steps go along -d), and its
            efficiency there.
        trajectories: where each method goes from each start, a row per step.
        provenance: the problem, settings and versions; ``problem`` is its name, ``inputs``,
            ``targets`` and ``likelihood`` are its samples.
    """

    landscape: pd.DataFrame
    field: pd.DataFrame
    trajectories: pd.DataFrame
    provenance: Mapping[str, Any]


def write_toy(toy: Toy, folder: str | os.PathLike[str]) -> None:
    """Write the tables as CSV with every digit, and ``toy.json`` with their provenance.

    Raises:
        EvalkitError: the folder cannot be written.
    """
    folder = make_folder(folder)
    for name, columns in COLUMNS.items():
        text = getattr(toy, name).to_csv(index=False, columns=list(columns), lineterminator="\n")
        write_atomically(folder / f"{name}.csv", text)
    write_atomically(folder / SETTINGS_FILE, json.dumps(dict(toy.provenance), indent=2) + "\n")


def read_toy(folder: str | os.PathLike[str]) -> Toy:
    """Return what :func:`write_toy` wrote, to draw it again.

    Raises:
        EvalkitError: a file is missing or is not what was written.
    """
    folder = Path(folder)
    try:
        tables = {
            name: pd.read_csv(folder / f"{name}.csv", usecols=columns, converters=_NUMBERS)
            for name, columns in COLUMNS.items()
        }
        provenance = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalkitError(
            f"expected the tables of a toy problem in {folder}, found: {error}; make them with "
            "'evalkit toy'"
        ) from error
    return Toy(**tables, provenance=provenance)
