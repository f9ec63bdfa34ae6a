"""What a request can and cannot tell: sentences about sizes, for whoever reads the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evalkit.counts import counted
from evalkit.machine import gigabytes
from evalkit.overlap import overlap_of

LARGE = 1 << 30
"""Bytes from which on it is said what matrices take."""
SHOWN = 4
"""Parameters that a note names; ``run.json`` has all."""
_BECOMES = {
    "block": "each has a block of its own in methods by layers (`others=block`)",
    "gradient": "methods by layers take the plain gradient there, whose scale against their blocks "
    "is arbitrary (`others=gradient`)",
    "leave": "left out of every row (`others=leave`)",
}


def notes_on(provenance: Mapping[str, Any], needed: int = 0) -> tuple[str, ...]:
    """Return sentences about the sizes that ``run.json`` tells, none where all is well.

    A batch with more free outputs than the model has parameters has a Jacobian without full row
    rank: then no direction need reach the floor. Batches that share most of their samples say
    little about others. Parameters without factors are named, and the memory that methods by layers
    need where it is much.

    Args:
        provenance: what ``run.json`` says.
        needed: bytes for the matrices of methods by layers.
    """
    settings = provenance.get("settings")
    settings = settings if isinstance(settings, Mapping) else {}
    size, batches = _count(settings.get("batch_size")), _count(settings.get("batches"))
    parameters = _count(provenance.get("trainable_parameters"))
    per_sample = provenance.get("outputs_per_sample")
    samples = _count(provenance.get("training_samples"))
    notes = []
    if size and parameters and isinstance(per_sample, (int, float)) and per_sample > 0:
        notes.append(_rank_note(size, parameters, float(per_sample)))
    if size and batches and samples:
        notes.append(overlap_of(batches, size, samples).note)
    notes.append(_others_note(provenance.get("without_factors"), settings.get("others")))
    if needed > LARGE:
        notes.append(f"matrices of methods by layers take up to {gigabytes(needed)} of memory")
    return tuple(note for note in notes if note)


def _others_note(names: Any, others: Any) -> str:
    """Return the sentence on parameters without factors, empty where there are none."""
    if not isinstance(names, list) or not names:
        return ""
    more = f" and {len(names) - SHOWN} more, listed in run.json" if len(names) > SHOWN else ""
    shown = ", ".join(map(str, names[:SHOWN]))
    named = f"{counted(len(names), 'parameter')} without factors ({shown}{more})"
    return f"{named}: {_BECOMES.get(str(others), '')}"


def _count(value: Any) -> int:
    """Return a number of things, 0 where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _rank_note(size: int, parameters: int, per_sample: float) -> str:
    outputs = size * per_sample
    if outputs <= parameters:
        return ""
    most = math.floor(parameters / per_sample)
    advice = f"lower `batch_size` to {most} or less" if most else "score a larger model"
    return (
        f"a batch has {counted(round(outputs), 'free output')} ({counted(size, 'sample')} of "
        f"{per_sample:.3g}) and the model {counted(parameters, 'parameter')}: no direction can fit "
        "them all, efficiencies stay below 100%, and methods that weight single samples can end "
        f"worse than SGD; {advice}"
    )
