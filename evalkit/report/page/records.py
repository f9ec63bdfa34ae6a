"""Tables of the report page of what ``run.json`` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from evalkit.report.page.cells import Cell, Table


def provenance_table(provenance: Mapping[str, Any]) -> Table:
    """Return every entry of ``run.json`` but the checkpoints, nested ones a row each."""
    rows: list[tuple[Cell, Cell]] = []
    for key, value in provenance.items():
        if isinstance(value, Mapping):
            rows += [(Cell(f"{key}: {name}"), Cell(as_text(item))) for name, item in value.items()]
        elif key != "checkpoints":
            rows.append((Cell(key), Cell(as_text(value))))
    return Table(("entry", "value"), tuple(rows))


def checkpoints_table(provenance: Mapping[str, Any]) -> Table:
    """Return what ``run.json`` says about each checkpoint, hashes included."""
    columns = {
        "name": "checkpoint",
        "step": "step",
        "epoch": "epoch",
        "progress": "progress",
        "training_loss": "training loss",
        "validation_accuracy": "validation accuracy",
        "sha256": "SHA-256",
    }
    found = provenance.get("checkpoints")
    entries = [item for item in found if isinstance(item, Mapping)] if _listed(found) else []
    rows = tuple(tuple(_entry(item.get(key)) for key in columns) for item in entries)
    return Table(tuple(columns.values()), rows)


def as_text(value: Any) -> str:
    """Return a value of ``run.json`` as a cell shows it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(as_text, value)) if _listed(value) else str(value)


def _entry(value: Any) -> Cell:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Cell(as_text(value), float(value) if number else None)


def _listed(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, (list, tuple))
