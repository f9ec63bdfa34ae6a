"""The tables of a toy problem: landscape, field and trajectories, and what they were made with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from evalkit.errors import EvalkitError
from evalkit.storage.columns import Column, Source, csv_line, csv_rows, parse_csv
from evalkit.storage.files import make_folder, write_atomically

SETTINGS_FILE = "toy.json"
_POINT = (Column("weight", float, signed=True), Column("bias", float, signed=True))
_LOSS = Column("loss", float, signed=True)
TABLES = {
    "landscape": (*_POINT, _LOSS),
    "field": (
        Column("method", str),
        *_POINT,
        Column("direction_weight", float, signed=True),
        Column("direction_bias", float, signed=True),
        Column("efficiency", float, signed=True),
    ),
    "trajectories": (
        Column("method", str),
        Column("start", int, needed=True),
        Column("step", int, needed=True),
        *_POINT,
        _LOSS,
    ),
}
"""Columns of each table; its file is called like it, with the ending .csv."""
_MAKE_AGAIN = "make them with 'evalkit toy'"


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
    for name, columns in TABLES.items():
        head = csv_line([column.name for column in columns])
        write_atomically(folder / f"{name}.csv", head + csv_rows(getattr(toy, name), columns))
    write_atomically(folder / SETTINGS_FILE, json.dumps(dict(toy.provenance), indent=2) + "\n")


def read_toy(folder: str | os.PathLike[str]) -> Toy:
    """Return what :func:`write_toy` wrote, to draw it again.

    Raises:
        EvalkitError: a file is missing or is not what was written.
    """
    folder = Path(folder)
    try:
        tables = {
            name: _read_table(folder / f"{name}.csv", columns) for name, columns in TABLES.items()
        }
        provenance = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except EvalkitError:
        raise
    except (OSError, ValueError) as error:
        raise EvalkitError(
            f"expected the tables of a toy problem in {folder}, found: {error}; {_MAKE_AGAIN}"
        ) from error
    return Toy(**tables, provenance=provenance)


def _read_table(path: Path, columns: Sequence[Column]) -> pd.DataFrame:
    return parse_csv(path.read_text(encoding="utf-8"), columns, Source(path, _MAKE_AGAIN))
