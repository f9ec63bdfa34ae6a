"""Stated errors of what a gate compares: how far they reach, and what rests on marked scores."""

from __future__ import annotations

import numpy as np
import pandas as pd

from evalkit.doubts import MARKED, mean_error, ratio_errors
from evalkit.gate.baseline_file import ERROR
from evalkit.results.intervals import EFFICIENCY, Metric
from evalkit.results.marks import reach

NOISE = "noise"
_SIDES = {"": "obtained", "_expected": "expected"}


def with_ratio_errors(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of one checkpoint with ``ratio_error``, that of gamma and of SGD's gamma.

    ``ratio_noise`` is the same of the noise. SGD's own ratio is 1, whatever its error; one that was
    not scored has none that is known.

    Args:
        rows: as in a baseline.
    """
    sgd = rows[rows["method"] == "sgd"].groupby("batch")[ERROR].first()
    reference = rows["batch"].map(sgd).astype(float)
    scored = rows["method"] != "sgd"
    for name in (ERROR, NOISE):
        combined = ratio_errors(rows[name], reference)
        rows = rows.assign(**{f"ratio_{name}": np.where(scored, combined, 0.0)})
    return rows


def stated_errors(metric: Metric, pairs: pd.DataFrame) -> np.ndarray:
    """Return how far each difference obtained - expected may be noise, errors unknown as none.

    ln(1 + e) of both sides for a log ratio with errors e, and e times the efficiency of both. The
    gamma of what a solver found is no less certain for being far from that of the exact solution:
    of rows of the run whose error is that distance nothing is counted.

    Args:
        metric: what is compared.
        pairs: the pairs of run and baseline, (B,) rows, the latter's columns with ``_expected``.
    """
    total = np.zeros(len(pairs))
    for suffix in _SIDES:
        errors = _errors(metric, pairs, suffix, NOISE).fillna(0.0).to_numpy(float)
        if metric is EFFICIENCY:
            with np.errstate(invalid="ignore"):
                total += np.nan_to_num(
                    errors * pairs[f"{metric.column}{suffix}"].to_numpy(float), posinf=np.inf
                )
        else:
            total += np.log1p(errors)
    return total


def doubt(metric: Metric, pairs: pd.DataFrame) -> str:
    """Return what is said of a comparison that rests on marked scores, empty for others.

    Args:
        metric: what is compared.
        pairs: as in :func:`stated_errors`.
    """
    said: dict[str, list[str]] = {}
    for suffix, side in _SIDES.items():
        error = mean_error(_errors(metric, pairs, suffix))
        if error > MARKED:
            said.setdefault(reach(error), []).append(side)
        elif pairs[f"impossible{suffix}"].any():
            said.setdefault("cannot be", []).append(side)
    return "; ".join(f"{' and '.join(sides)} {text}" for text, sides in said.items())


def lost_accuracy(metric: Metric, pairs: pd.DataFrame) -> bool:
    """Whether the run is too noisy for a comparison and the baseline is not.

    Args:
        metric: what is compared.
        pairs: as in :func:`stated_errors`.
    """
    obtained, expected = (
        mean_error(_errors(metric, pairs, suffix, NOISE)) > MARKED for suffix in _SIDES
    )
    return obtained and not expected


def _errors(metric: Metric, pairs: pd.DataFrame, suffix: str, name: str = ERROR) -> pd.Series:
    return pairs[f"{'' if metric is EFFICIENCY else 'ratio_'}{name}{suffix}"]
