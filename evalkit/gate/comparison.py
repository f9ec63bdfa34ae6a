"""What a gate says: a verdict for each number that was compared, and for the run as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd

from evalkit.results.intervals import EFFICIENCY, LOG_RATIO

Verdict = Literal["worse", "not comparable", "new", "improved", "same"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""Worst first."""
FAILURES: frozenset[Verdict] = frozenset({"worse", "not comparable"})
METRICS = (LOG_RATIO, EFFICIENCY)
ALL = "all"


@dataclass(frozen=True)
class Comparison:
    """One number of a run against that of the baseline, both means over the same batches.

    Attributes:
        checkpoint: its name, or ``ALL``.
        method: with settings as written, or ``ALL``.
        damping: lambda; NaN where the row is about every damping.
        metric: name of what is compared; empty where nothing could be.
        verdict: what became of it.
        obtained: mean in the run.
        expected: mean in the baseline.
        difference: mean of obtained - expected.
        low: lower end of the interval of the difference.
        high: upper end.
        reason: what the numbers alone do not say.
        batches: on how many the means and the interval rest.
        p_value: corrected for the number of rows of the check that could have a verdict by their
            interval; NaN for the other rows.
        stated: how far the difference may be rounding, by the stated errors of both sides.
        doubt: what is said where it rests on marked scores; empty otherwise.
    """

    checkpoint: str
    method: str
    damping: float
    metric: str
    verdict: Verdict
    obtained: float = math.nan
    expected: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    reason: str = ""
    batches: int = 0
    p_value: float = math.nan
    stated: float = 0.0
    doubt: str = ""

    @property
    def within_error(self) -> bool:
        """Whether the difference may be nothing but rounding."""
        return abs(self.difference) <= self.stated

    @property
    def failed(self) -> bool:
        """Whether the gate fails for this row."""
        return self.verdict in FAILURES

    @property
    def badness(self) -> tuple[int, bool, float]:
        """Where it stands, worst first: by verdict, then what has a reason, then by difference."""
        wrong_way = {metric.name: -1 if metric.higher_is_better else 1 for metric in METRICS}
        worsening = self.difference * wrong_way.get(self.metric, 0)
        size = 0.0 if math.isnan(worsening) else -worsening
        return VERDICTS.index(self.verdict), not self.reason, size


@dataclass(frozen=True)
class Check:
    """What a gate found.

    Attributes:
        task: name of the task.
        tolerance: differences up to this size are the same.
        checkpoints: their names in the order of training.
        comparisons: worst first.
        notes: what differs between run and baseline without being held against the run.
        remarks: sentences on marked scores, each with its sign.
    """

    task: str
    tolerance: float
    checkpoints: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no comparison failed."""
        return not any(comparison.failed for comparison in self.comparisons)

    @property
    def undecided(self) -> tuple[Comparison, ...]:
        """Those called the same because too few batches tell them from nothing.

        Their mean differs by more than the tolerance.
        """
        return tuple(found for found in self._beyond if not found.within_error)

    @property
    def within_error(self) -> tuple[Comparison, ...]:
        """Those called the same because their stated errors exceed the difference.

        Their mean differs by more than the tolerance.
        """
        return tuple(found for found in self._beyond if found.within_error)

    @property
    def doubtful(self) -> tuple[Comparison, ...]:
        """Those that rest on marked scores."""
        return tuple(comparison for comparison in self.comparisons if comparison.doubt)

    @property
    def _beyond(self) -> tuple[Comparison, ...]:
        return tuple(
            comparison
            for comparison in self.comparisons
            if comparison.verdict == "same" and abs(comparison.difference) > self.tolerance
        )

    @property
    def table(self) -> pd.DataFrame:
        """The comparisons as a table: a column per field of :class:`Comparison`."""
        return pd.DataFrame(list(self.comparisons), columns=list(Comparison.__dataclass_fields__))
