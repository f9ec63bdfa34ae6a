"""Tables of the report page of what ``run.json`` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from evalkit.report.page.cells import Cell, Table


def provenance_table(provenance: Mapping[str, Any]) -> Table:
    """Return every entry of ``run.json`` but the checkpoints, nested ones a row each.

    Those of a list, as the optimizers of checkpoints and past tasks, are named by what they are of.
    """
    rows: list[tuple[Cell, Cell]] = []
    for key, value in provenance.items():
        if isinstance(value, Mapping):
            rows += [(Cell(f"{key}: {name}"), Cell(as_text(item))) for name, item in value.items()]
        elif _listed(value) and value and all(isinstance(item, Mapping) for item in value):
            named = _named(value) if key != "checkpoints" else {}
            rows += [(Cell(f"{key}: {name}"), Cell(as_text(item))) for name, item in named.items()]
        elif key != "checkpoints":
            rows.append((Cell(key), Cell(as_text(value))))
    return Table(("entry", "value"), tuple(rows))


def _named(items: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return entries by what they are of, the rest of each; by number where that is not told."""
    named: dict[str, Mapping[str, Any]] = {}
    for number, item in enumerate(items, start=1):
        of = next((key for key in ("checkpoint", "task") if key in item), None)
        name = str(number) if of is None else as_text(item[of])
        named[name if name not in named else f"{name} ({number})"] = {
            key: value for key, value in item.items() if key != of
        }
    return named


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
    """Return a value of ``run.json`` as a cell shows it: of settings by name those that are set."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(_setting(key, item) for key, item in value.items() if _is_set(item))
    return ", ".join(map(_part, value)) if _listed(value) else str(value)


def _setting(name: str, value: Any) -> str:
    return name if value is True else f"{name} {_part(value)}"


def _part(value: Any) -> str:
    """Return a value among others, several in brackets."""
    if _listed(value) and len(value) == 1:
        return _part(value[0])
    return f"({as_text(value)})" if isinstance(value, Mapping | list | tuple) else as_text(value)


def _is_set(value: Any) -> bool:
    return value is not None and value is not False


def _entry(value: Any) -> Cell:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Cell(as_text(value), float(value) if number else None)


def _listed(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, (list, tuple))
