"""Means over batches and one sigma around them: which kind, how far, and how they are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evalkit.storage.tables import TABLES

GEOMETRIC = {
    column.name for table in TABLES.values() for column in table if column.mean == "geometric"
} | {"floor_ratio"}
"""Columns whose mean over batches is geometric, and whose spread is a factor."""


def format_number(value: float) -> str:
    """Return ``value`` with three significant digits: 0.623, 541, 6.5e+05, inf, n/a."""
    if math.isnan(value):
        return "n/a"
    if math.isinf(value) or value == 0:
        return f"{value:g}"
    if abs(float(f"{value:.3g}")) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.2e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))
    return f"{value:.{decimals}f}"


def format_spread(mean: float, sigma: float) -> str:
    """Return ``mean ± sigma`` to the mean's last digit; the mean alone where sigma is 0 or n/a."""
    text = format_number(mean)
    if not (math.isfinite(mean) and sigma > 0):
        return text
    digits, _, power = text.partition("e")
    decimals = len(digits.partition(".")[2])
    if power:
        return f"({digits} ± {sigma / 10 ** int(power):.{decimals}f})e{power}"
    return f"{text} ± {sigma:.{decimals}f}"


def format_factor(mean: float, factor: float) -> str:
    """Return ``mean ×/÷ factor``, of one geometric sigma; the mean alone where it does not vary."""
    text = format_number(mean)
    if not (math.isfinite(mean) and math.isfinite(factor) and factor > 1):
        return text
    return f"{text} ×/÷ {factor:.2f}"


def format_percent(share: float) -> str:
    """Return an efficiency as it is written for people: 52%, 0.2%, n/a; tables hold the share."""
    if math.isnan(share):
        return format_number(share)
    return f"{share:.0%}" if share >= 0.095 else f"{100 * share:.1g}%"


@dataclass(frozen=True, eq=False)
class Spread:
    """Means of a column over batches, and one sigma around them.

    Attributes:
        mean: (R,), a value per row, geometric for the columns in ``GEOMETRIC``.
        low: (R,), one sigma below: mean / factor or mean - sigma.
        high: (R,), one sigma above: mean * factor or mean + sigma.
        texts: what tables say of each.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    texts: tuple[str, ...]


def spread(rows: pd.DataFrame, column: str) -> Spread:
    """Return mean and one sigma of a column of a summary, NaN where there is no sigma.

    Args:
        rows: the result of :func:`summarize`, :func:`summarize_batches` or ``pairs.compare``.
        column: its name without ``_mean``.
    """
    mean = rows[f"{column}_mean"].to_numpy(float)
    if column not in GEOMETRIC:
        sigma = rows[f"{column}_std"].to_numpy(float)
        written = [format_spread(*pair) for pair in zip(mean, sigma, strict=True)]
        return Spread(mean, mean - sigma, mean + sigma, tuple(written))
    factor = rows[f"{column}_factor"].to_numpy(float)
    low, high = mean / factor, mean * factor
    if column == "efficiency":
        written = [
            format_percent(value)
            + (f" ×/÷ {by:.2f}" if math.isfinite(by) and by > 1 and value > 0 else "")
            for value, by in zip(mean, factor, strict=True)
        ]
        high = np.maximum(mean, np.minimum(high, 1))  # No direction is better than the floor.
    else:
        written = [format_factor(*pair) for pair in zip(mean, factor, strict=True)]
    return Spread(mean, low, high, tuple(written))


def geometric_spread(values: np.ndarray) -> tuple[float, float]:
    """Return geometric mean and geometric standard deviation, a factor of at least 1.

    exp of mean and of standard deviation (divisor n - 1; factor 1 for one value) of the logarithms.
    Zero or infinity among the values makes the mean so, and leaves the factor empty.

    Args:
        values: not negative, (n,).
    """
    if not values.size:
        return math.nan, math.nan
    if (values == values[0]).all():  # exact, which exp(ln) is but nearly
        return float(values[0]), 1.0 if math.isfinite(values[0]) else math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
        mean = float(np.exp(logs.mean()))
    if not np.isfinite(logs).all():
        return mean, math.nan
    return mean, float(np.exp(logs.std(ddof=1)))
