"""Comparisons paired by batch: differences, bootstrap intervals and what they allow to say.

Two numbers of the same batch share most of what varies between batches, so that their difference is
far more certain than either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 9999
LEVEL = 0.95

Statement = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Metric:
    """A number of a row of scores, and which way of it is good.

    Attributes:
        name: how it is named in tables.
        column: of the scores.
        transform: maps the column to values whose differences are compared.
        higher_is_better: the direction.
    """

    name: str
    column: str
    transform: Callable[[np.ndarray], np.ndarray]
    higher_is_better: bool


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(values)


LOG_RATIO = Metric("log ratio", "ratio", _log, higher_is_better=False)
"""ln(gamma / gamma of SGD): a difference of 0.05 is five percent."""
EFFICIENCY = Metric("efficiency", "efficiency", np.asarray, higher_is_better=True)
"""gamma_floor / gamma: a difference of 0.05 is five percent of what is possible."""


@dataclass(frozen=True)
class Interval:
    """A mean of paired differences with its bootstrap interval.

    Attributes:
        mean: of the differences.
        low: lower end.
        high: upper end.
        pairs: number of batches.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the mean is decided."""
        return self.low > 0 or self.high < 0

    def statement(self, metric: Metric) -> Statement:
        """Return what the interval says about the first of the two that were compared."""
        if not self.excludes_zero:
            return "undecided"
        return "better" if (self.mean > 0) == metric.higher_is_better else "worse"


def differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return first - second, pair by pair; 0 where both are the same infinity.

    Args:
        first: (B,), a value per batch.
        second: (B,), of the same batches.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    return np.subtract(first, second, out=np.zeros_like(first), where=first != second)


def interval(values: np.ndarray, generator: np.random.Generator) -> Interval:
    """Return mean and bootstrap interval of paired differences (percentile, 95%).

    With a single pair there is nothing to resample: the interval is the whole line unless the
    difference is 0. A mean that is infinite, since a method lost its descent in some batch, is
    certain. NaN differences, of which nothing is known, make everything NaN.

    Args:
        values: (B,), of :func:`differences`.
        generator: of the resamples.
    """
    values = np.asarray(values, float)
    with np.errstate(invalid="ignore"):
        mean, pairs = float(values.mean()) if len(values) else math.nan, len(values)
    if not math.isfinite(mean) or np.ptp(values) == 0:
        if pairs == 1 and mean != 0 and math.isfinite(mean):
            return Interval(mean, -math.inf, math.inf, pairs)
        return Interval(mean, mean, mean, pairs)
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        rng=generator,
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), pairs)
