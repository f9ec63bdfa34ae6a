"""Rows that a run was asked for and does not have: found, told, and scored by the same command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from evalkit.storage.run_folder import Run, asked_for
from evalkit.storage.tables import BATCHES_FILE, FAILURES_FILE, SCORES_FILE

Cell = tuple[str, int]
"""Checkpoint and batch."""
Pair = tuple[str, float]
"""Method and damping."""


def scored_pairs(scores: pd.DataFrame, batches: pd.DataFrame) -> dict[Cell, set[Pair]]:
    """Return the pairs that each finished cell has a row of.

    Args:
        scores: rows of finished cells.
        batches: a row per finished cell.
    """
    cells = zip(batches["checkpoint"], batches["batch"], strict=True)
    found: dict[Cell, set[Pair]] = {(str(name), int(batch)): set() for name, batch in cells}
    for row in scores[["checkpoint", "batch", "method", "damping"]].itertuples(index=False):
        found[row.checkpoint, int(row.batch)].add((row.method, row.damping))
    return found


def failed_batches(run: Run) -> str:
    """Return a sentence about batches that could not be scored, or not in full; empty for none."""
    if run.failures.empty:
        return ""
    first = run.failures.iloc[0]
    count, wanted = len(run.failures), _wanted_cells(run.provenance)
    return (
        f"{count} of {max(count, wanted)} batches could not be scored, or not with every method, "
        f"and are in no mean; the first is batch {first['batch']} of checkpoint "
        f"'{first['checkpoint']}' ({first['reason']}), all are in {run.folder / FAILURES_FILE}; "
        "mend the cause and give the same 'evalkit score' command, which tries them again"
    )


def lost_rows(run: Run) -> str:
    """Return a sentence about rows that ``run.json`` lists and the tables lack, empty for none.

    A batch that was not scored yet lacks nothing, unless the run is finished, and one that failed
    is told by :func:`failed_batches`.
    """
    methods, dampings = asked_for(run.provenance)
    asked = {(method, damping) for method in methods for damping in dampings}
    cells = scored_pairs(run.scores, run.batches)
    failed = set(zip(run.failures["checkpoint"], run.failures["batch"], strict=True))
    lacking = {
        cell: asked - rows
        for cell, rows in sorted(cells.items())
        if asked - rows and cell not in failed
    }
    if lacking:
        (name, batch), pairs = next(iter(lacking.items()))
        method, damping = min(pairs)
        return (
            f"{sum(map(len, lacking.values()))} of {len(asked) * len(cells)} rows are missing in "
            f"{run.folder / SCORES_FILE}, the first is {method} at damping {damping:g} in batch "
            f"{batch} of checkpoint '{name}'; the same 'evalkit score' command scores what is "
            "missing"
        )
    wanted = _wanted_cells(run.provenance)
    if run.provenance.get("finished") and len(cells) < wanted:
        return (
            f"the rows of {wanted - len(cells)} of {wanted} batches are missing in "
            f"{run.folder / BATCHES_FILE}; the same 'evalkit score' command scores what is missing"
        )
    return ""


def _wanted_cells(provenance: Mapping[str, Any]) -> int:
    settings, checkpoints = provenance.get("settings"), provenance.get("checkpoints")
    batches = settings.get("batches") if isinstance(settings, Mapping) else None
    if not isinstance(batches, int) or not isinstance(checkpoints, (list, tuple)):
        return 0
    return batches * len(checkpoints)
