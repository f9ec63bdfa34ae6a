"""Rows that a run was asked for and does not have: found, told, and scored by the same command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from evalkit.counts import counted
from evalkit.errors import shortened
from evalkit.storage.run_folder import Run, asked_for, cells, failure_counts
from evalkit.storage.tables import BATCHES_FILE, SCORES_FILE

Cell = tuple[str, int]
"""Checkpoint and batch."""
Pair = tuple[str, float]
"""Method and damping."""
SHOWN = 3
"""Reasons of failures that a sentence tells."""
LONGEST = 200
"""Characters of a reason that it tells."""


def scored_pairs(scores: pd.DataFrame, batches: pd.DataFrame) -> dict[Cell, set[Pair]]:
    """Return the pairs that each finished cell has a row of.

    Args:
        scores: rows of finished cells.
        batches: a row per finished cell.
    """
    keys = zip(batches["checkpoint"], batches["batch"], strict=True)
    found: dict[Cell, set[Pair]] = {(str(name), int(batch)): set() for name, batch in keys}
    for (method, damping), rows in scores.groupby(["method", "damping"], sort=False):
        pair = (str(method), float(damping))
        for name, batch in zip(rows["checkpoint"].to_list(), rows["batch"].to_list(), strict=True):
            found[name, batch].add(pair)
    return found


def lost_rows(run: Run) -> str:
    """Return sentences about rows that were asked for and are not there, empty where all are.

    They are those of batches that could not be scored, with the reasons, and those that
    ``run.json`` lists and the tables lack. A batch that was not scored yet lacks nothing, unless
    the run is finished.
    """
    return "; ".join(text for text in (failed_cells(run), _missing_rows(run)) if text)


def failed_cells(run: Run) -> str:
    """Return a sentence about the batches that could not be scored, empty for none."""
    if run.failures.empty:
        return ""
    counts = list(failure_counts(run.failures).items())
    told = [f"{count} x '{shortened(reason, LONGEST)}'" for reason, count in counts[:SHOWN]]
    more = sum(count for _, count in counts[SHOWN:])
    told += [f"{more} for other reasons, listed in failures.csv"] if more else []
    number = len(run.failures)
    return (
        f"{counted(number, 'batch')} {'was' if number == 1 else 'were'} not scored, or not by "
        f"every method, and what lacks is in no mean: {', '.join(told)}; the same 'evalkit score' "
        "command tries again"
    )


def _missing_rows(run: Run) -> str:
    methods, dampings = asked_for(run.provenance)
    asked = {(method, damping) for method in methods for damping in dampings}
    found = scored_pairs(run.scores, run.batches)
    failed = cells(run.failures)
    lacking = {
        cell: asked - rows
        for cell, rows in sorted(found.items())
        if asked - rows and cell not in failed
    }
    if lacking:
        (name, batch), pairs = next(iter(lacking.items()))
        method, damping = min(pairs)
        count = sum(map(len, lacking.values()))
        return (
            f"{count} of {counted(len(asked) * len(found), 'row')} {'is' if count == 1 else 'are'} "
            f"missing in {run.folder / SCORES_FILE}, the first is {method} at damping {damping:g} "
            f"in batch {batch} of checkpoint '{name}'; the same 'evalkit score' command scores "
            "what is missing"
        )
    wanted = _wanted_cells(run.provenance)
    if run.provenance.get("finished") and len(found) < wanted:
        return (
            f"the rows of {wanted - len(found)} of {counted(wanted, 'batch')} are missing in "
            f"{run.folder / BATCHES_FILE}; the same 'evalkit score' command scores what is missing"
        )
    return ""


def _wanted_cells(provenance: Mapping[str, Any]) -> int:
    settings, checkpoints = provenance.get("settings"), provenance.get("checkpoints")
    batches = settings.get("batches") if isinstance(settings, Mapping) else None
    if not isinstance(batches, int) or not isinstance(checkpoints, (list, tuple)):
        return 0
    return batches * len(checkpoints)
