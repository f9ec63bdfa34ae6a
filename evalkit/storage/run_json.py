"""``run.json``: how the tables of a RUN were made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalkit.storage.files import write_atomically
from evalkit.storage.json_files import parse_object, printable
from evalkit.storage.tables import SCORE_AGAIN, read_text

PROVENANCE_FILE = "run.json"


def write_provenance(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write ``run.json``, whole or not at all; numbers that are not finite become null."""
    write_atomically(folder / PROVENANCE_FILE, _json(provenance))


def update_provenance(folder: str | os.PathLike[str], **changes: Any) -> None:
    """Set top-level entries of ``run.json``, such as ``finished`` and ``seconds``, atomically."""
    merged = {**read_provenance(folder), **changes}
    write_provenance(Path(folder), merged)


def read_provenance(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what ``run.json`` says.

    Raises:
        EvalkitError: no such folder or file, or a file that is not a JSON object.
    """
    path = Path(folder) / PROVENANCE_FILE
    return parse_object(read_text(path), path, SCORE_AGAIN)


def asked_for(provenance: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return the methods and the dampings that ``run.json`` lists, none where it lists none."""
    settings = provenance.get("settings")
    listed = settings if isinstance(settings, Mapping) else {}
    methods, dampings = listed.get("methods"), listed.get("dampings")
    return (
        tuple(name for name in methods if isinstance(name, str))
        if isinstance(methods, (list, tuple))
        else (),
        tuple(
            float(value)
            for value in dampings
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        )
        if isinstance(dampings, (list, tuple))
        else (),
    )


def wants_parquet(provenance: Mapping[str, Any]) -> bool:
    """Return whether ``run.json`` says that the tables are Parquet."""
    return provenance.get("tables") == "parquet"


def places_of(provenance: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    """Return step and progress of the checkpoints that ``run.json`` lists, by name."""
    listed = provenance.get("checkpoints")
    found = {}
    for item in listed if isinstance(listed, (list, tuple)) else ():
        if not isinstance(item, Mapping):
            continue
        name, step, progress = (item.get(key) for key in ("name", "step", "progress"))
        if type(step) is int and isinstance(progress, (int, float)):
            found[str(name)] = (step, float(progress))
    return found


def _json(provenance: Mapping[str, Any]) -> str:
    return json.dumps(_plain(provenance), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: numpy scalars as numbers, what is not finite as null."""
    if isinstance(value, Mapping):
        return {printable(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return printable(value)
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
