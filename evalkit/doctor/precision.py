"""Whether float32 has the digits that scores need: each score against float64 on one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from evalkit.doctor.finding import Finding
from evalkit.doctor.subject import Subject
from evalkit.doctor.trial import Trial
from evalkit.doubts import MARKED
from evalkit.names import display_name
from evalkit.results.marks import UNRELIABLE_SIGN, marks_of, percent
from evalkit.storage.columns import frame_of
from evalkit.storage.rows import Score

_NAME = "precision"


def precision(subject: Subject, tried: Trial) -> Finding:
    """Find which scores float32 has too few digits for, and which float64 has not.

    Args:
        subject: whose settings say which precision a study has.
        tried: one batch, scored as the study does and in float64.
    """
    again = _names([one for one in tried.rows if one.dtype == "float64"])
    asked = subject.settings.dtype
    changes = _changes(tried)
    worst = max(changes, key=lambda name: changes[name], default="")
    largest = changes.get(worst, 0.0)
    numbers = {"largest_change": largest, "changes": changes, "found_again": again}
    said = [s for s in marks_of(_as_run(tried.rows)).sentences if s.startswith(UNRELIABLE_SIGN)]
    if said:
        # A sentence of a mark has what to do behind its last colon or semicolon.
        text = said[0].lstrip(f"{UNRELIABLE_SIGN} ").rstrip(".")
        place = max(text.rfind(": "), text.rfind("; "))
        return Finding(_NAME, "warn", text[:place], text[place + 2 :], numbers)
    if asked == "float64" or tried.lin.logits.element_size() == 8:
        return Finding(_NAME, "ok", "float64 throughout", numbers=numbers)
    if tried.double is None:
        return Finding(_NAME, "ok", "float32; the forward does not run in float64", numbers=numbers)
    if largest > MARKED:
        return Finding(
            _NAME,
            "warn",
            f"gamma of {display_name(worst)} is {percent(largest)} off in float32, which its "
            "stated error does not show",
            "give `dtype=float64`",
            numbers,
        )
    words = f"float32 is enough: float64 moves no gamma by more than {largest:.0e}"
    if again:
        words = (
            f"float32 is not enough for {', '.join(map(display_name, again))}, found again in "
            f"float64 without being asked; no gamma is off by more than {max(largest, 1e-16):.0e}"
        )
    return Finding(_NAME, "ok", words, numbers=numbers)


def _names(rows: Sequence[Score]) -> list[str]:
    return list(dict.fromkeys(row.method for row in rows))


def _changes(tried: Trial) -> dict[str, float]:
    """Return by how much float64 moves the gamma of each method, at the first damping."""
    changes = {}
    found = {(row.method, row.damping): row.gamma for row in tried.rows}
    for row in tried.double or ():
        one = found.get((row.method, row.damping), math.nan)
        if math.isfinite(one) and math.isfinite(row.gamma) and row.gamma > 0:
            changes[row.method] = abs(one / row.gamma - 1)
    return changes


def _as_run(rows: Sequence[Score]) -> pd.DataFrame:
    """Return rows as those of a run with one checkpoint and one batch."""
    return frame_of(rows, Score).assign(checkpoint="", step=0, progress=0.0, batch=0)
