"""What is exported of a run: its curves, what ``run.json`` says, and what needs a word."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.export.series import TRAINING, Series, curves_of, series_of
from evalkit.results.history import history_of
from evalkit.results.summaries import summarize_batches
from evalkit.storage.run_folder import Run


@dataclass(frozen=True)
class Content:
    """A run as other tools take it.

    Attributes:
        name: that of the folder of the run.
        task: what was scored.
        series: every curve, those of the training that ``run.json`` has included.
        labels: method and damping of the curves that are of one, by the curve.
        notes: sentences on what is left out, and on what is not to be relied on.
        provenance: what ``run.json`` says.
    """

    name: str
    task: str
    series: tuple[Series, ...]
    labels: Mapping[str, str]
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]


def content_of(run: Run) -> Content:
    """Return what is exported of a run.

    Raises:
        EvalkitError: two checkpoints have the same step.
    """
    curves, floors = curves_of(run), summarize_batches(run)
    history = history_of(run.provenance, floors)
    table = history.table.assign(step=floors["step"])
    told = series_of(table, TRAINING, (*history.losses, *history.metrics))
    return Content(
        name=name_of(run),
        task=str(run.provenance.get("task") or name_of(run)),
        series=(*curves.series, *told),
        labels=curves.labels,
        notes=curves.notes,
        provenance=run.provenance,
    )


def name_of(run: Run) -> str:
    """Return what a run is called: its folder's name."""
    return Path(run.folder).resolve().name or "run"


def provenance_text(provenance: Mapping[str, Any]) -> str:
    """Return ``run.json`` as text."""
    return json.dumps(provenance, indent=2, ensure_ascii=False)


def parameters(provenance: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield what ``run.json`` says as pairs of names and texts, checkpoints left out.

    Args:
        provenance: nested objects become names with dots, as ``settings.batch_size``.
        before: what the names begin with.
    """
    for key, value in provenance.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            yield from parameters(value, f"{name}.")
        elif name != "checkpoints" and value is not None:
            yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
