"""Rank correlation of two numbers of a few things, with an interval that holds for so few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from evalkit.results.intervals import LEVEL

FEWEST = 5
"""Of fewer points an interval that holds spans nearly everything; none is found."""
DRAWS = 4000
"""Of the bootstrap."""
_SEED = 0


@dataclass(frozen=True)
class Correlation:
    """A rank correlation with its 95% interval.

    Attributes:
        rho: Spearman's; NaN where there are too few points, or all are equal.
        low: lower end.
        high: upper end.
        points: how many things are ranked.
    """

    rho: float
    low: float
    high: float
    points: int

    @property
    def statement(self) -> str:
        """What the interval says: ``positive``, ``negative`` or ``undecided``."""
        if self.low > 0:
            return "positive"
        return "negative" if self.high < 0 else "undecided"


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation along the last axis, equal values at their mean rank.

    Args:
        first: (..., n), infinite values allowed.
        second: the same.

    Returns:
        (...), NaN where all values of either are equal.
    """
    one, other = (_centred_ranks(np.asarray(values, float)) for values in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        both = (one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
    return np.clip(both, -1, 1)


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Return mid-ranks less their mean. SciPy's own take half a second to import."""
    mine, others = values[..., :, None], values[..., None, :]
    return 0.5 * ((others < mine).sum(-1) - (others > mine).sum(-1))


def correlation(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Correlation:
    """Return the rank correlation of the means of two numbers, with its 95% interval.

    The interval is the hull of two. The first is that of the percentile bootstrap: things are drawn
    with replacement, and of each the repetitions that its means are over. The second is that of
    Bonett and Wright (Psychometrika 65, 2000), tanh(artanh rho +- 1.96 sqrt((1 + rho^2 / 2) / (n -
    3))), with a rho that is no nearer to 1 than that of two neighbours out of order: for a perfect
    order of few points the bootstrap knows of no other.

    Args:
        first: of each of n things the values in its R repetitions, such as seeds.
        second: the same; where a thing has as many repetitions in both they are drawn together.
    """
    pairs = [
        (np.asarray(one, float), np.asarray(other, float))
        for one, other in zip(first, second, strict=True)
    ]
    points = len(pairs)
    means = np.array([[values.mean() for values in pair] for pair in pairs]).reshape(points, 2).T
    rho = float(spearman(*means)) if points >= FEWEST and not np.isnan(means).any() else math.nan
    if math.isnan(rho):
        return Correlation(math.nan, math.nan, math.nan, points)
    drawn = spearman(*_drawn_means(pairs))
    low, high = np.quantile(drawn[~np.isnan(drawn)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    nearest = 1 - 12 / (points**3 - points)
    inside = min(max(rho, -nearest), nearest)
    reach = -float(ndtri((1 - LEVEL) / 2)) * math.sqrt((1 + inside**2 / 2) / (points - 3))
    ends = [math.tanh(math.atanh(inside) + sign * reach) for sign in (-1, 1)]
    return Correlation(rho, min(float(low), ends[0], rho), max(float(high), ends[1], rho), points)


def _drawn_means(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of both numbers of drawn things over drawn repetitions: (DRAWS, n) each."""
    draws = np.random.default_rng(_SEED)
    columns: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for one, other in pairs:
        chosen = draws.integers(0, len(one), (DRAWS, len(one)))
        again = chosen
        if len(other) != len(one):
            again = draws.integers(0, len(other), (DRAWS, len(other)))
        columns[0].append(one[chosen].mean(-1))
        columns[1].append(other[again].mean(-1))
    things = draws.integers(0, len(pairs), (DRAWS, len(pairs)))
    first, second = (np.take_along_axis(np.stack(column, -1), things, -1) for column in columns)
    return first, second
