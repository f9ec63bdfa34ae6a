"""What speaks against single rows of scores: their stated error, and what no direction can have."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from evalkit.errors import EvalkitError
from evalkit.given_settings import fitted
from evalkit.names import base_name, split_method
from evalkit.settings import MAX_ITERATIONS

MARKED = 1e-3
"""Relative error of gamma beyond which a score is found again with more digits, or marked."""

UNEQUAL = 1e-6
"""Relative difference from which on two gammas, or a gamma and the floor, are told apart."""

Doubt = Literal[
    "float32",
    "cancellation",
    "gradient",
    "unconverged",
    "tolerance",
    "below floor",
    "above others",
    "floor tie",
    "tie",
    "damped",
]
DOUBTS: tuple[Doubt, ...] = get_args(Doubt)
CAUSES: tuple[Doubt, ...] = DOUBTS[:5]
"""Causes of an error above :data:`MARKED`."""
IMPOSSIBLE: tuple[Doubt, ...] = DOUBTS[5:7]
"""Gammas that cannot be, by more than the stated errors; what is left only needs a word."""

_BATCH = ["checkpoint", "batch", "damping"]


def judge(scores: pd.DataFrame) -> pd.DataFrame:
    """Return rows of scores with what speaks against each.

    A row whose ``error`` is above :data:`MARKED` has one of the doubts that name the cause:
    ``"float32"``, the precision that it was found in; in float64 ``"cancellation"``, of the
    direction, or ``"gradient"``, of the gradient itself; ``"unconverged"``, a solver that
    stopped before its tolerance; ``"tolerance"``, one that met a tolerance that is too large.

    No direction has a gamma below the floor, an efficiency above 1. (F + lambda I)^-1 g has the
    smallest gamma^2 + lambda (|d| / slope)^2 of all directions d, and so for lambda = 0 the
    smallest gamma. Rows that say otherwise by more than the stated errors of both are
    ``"below floor"`` or ``"above others"``; within them, by more than :data:`UNEQUAL`, they are
    ``"floor tie"`` or ``"tie"``. An exact natural gradient whose gamma is above that of another
    method at the same damping as its damping has it, is ``"damped"``.

    Args:
        scores: as in ``scores.csv``; a row without an error is taken to be off by :data:`MARKED`
            where it is compared, and is not marked for it.

    Returns:
        The scores with a column of flags per doubt, ``above_floor`` = efficiency - 1,
        ``above_other`` = the largest gamma / gamma of another method - 1, NaN for methods that are
        not the natural gradient, and ``other``, that method.
    """
    rows = scores.reset_index(drop=True)
    rows = rows.assign(**dict.fromkeys(DOUBTS, False))
    for doubt, flags in _causes(rows).items():
        rows[doubt] = flags
    allowed = rows["error"].fillna(MARKED) + UNEQUAL
    rows["above_floor"] = rows["efficiency"].astype(float) - 1
    above = rows["above_floor"] > UNEQUAL
    explained = rows["above_floor"] <= allowed
    rows["below floor"], rows["floor tie"] = above & ~explained, above & explained
    return _beside_others(rows)


def mean_error(errors: ArrayLike) -> float:
    """Return the error of a geometric mean over rows from theirs: prod (1 + e_i)^(1/B) - 1.

    An error e says that gamma and its exact value differ by a factor of at most 1 + e, to first
    order either way, and the factors of B rows multiply. Never more than the arithmetic mean of the
    errors, to which it is equal where they are small. NaN, an error that is not stated, counts as
    none; NaN where no row states one.

    Args:
        errors: (B,), the errors of the rows.
    """
    known = np.asarray(errors, float)
    if np.isnan(known).all():
        return math.nan
    return float(np.expm1(np.log1p(np.nan_to_num(known, nan=0.0, posinf=np.inf)).mean()))


def ratio_errors(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Return the errors of ratios of two gammas: (1 + a) (1 + b) - 1, nearly a + b.

    Args:
        first: (B,), the errors of the one, NaN where it is not stated.
        second: (B,), those of the other.

    Returns:
        (B,), NaN where neither is stated.
    """
    both = np.asarray(first, float), np.asarray(second, float)
    stated, other = (np.where(np.isnan(errors), 0.0, errors) for errors in both)
    unknown = np.isnan(both[0]) & np.isnan(both[1])
    return np.where(unknown, math.nan, (1 + stated) * (1 + other) - 1)


def _causes(rows: pd.DataFrame) -> dict[Doubt, pd.Series]:
    """Return the rows whose error is above :data:`MARKED`, by cause."""
    left = rows["error"] > MARKED
    solved = rows["solver"].isin(("cg", "sketch"))
    found: dict[Doubt, pd.Series] = {}
    for doubt, flags in (
        ("unconverged", solved & ~rows["converged"].fillna(True).astype(bool)),
        ("float32", rows["dtype"] == "float32"),
        ("tolerance", solved & rows["converged"].fillna(False).astype(bool)),
        ("gradient", rows["method"] == "sgd"),
        ("cancellation", pd.Series(True, rows.index)),
    ):
        found[doubt] = left & flags  # type: ignore[index]
        left = left & ~flags
    return found


def iteration_limit(method: str) -> float:
    """Return the iterations that a method's solver may take, as its name sets them or by default.

    Args:
        method: with settings as written.
    """
    key, settings = "max_iterations", split_method(method)[1]
    try:
        return float(fitted(method, {key: settings[key]}, {key: MAX_ITERATIONS})[key])
    except (KeyError, EvalkitError):  # of another method, or in a table that others wrote
        return MAX_ITERATIONS


def _beside_others(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with what the exact natural gradient says beside other methods of its batch."""
    rows = rows.assign(above_other=math.nan, other="")
    methods = rows["method"].unique()
    natural = rows["method"].isin([name for name in methods if base_name(name) == "ngd"])
    columns = [*_BATCH, "method", "gamma", "norm", "slope", "error"]
    ours = rows.loc[natural, columns].reset_index(names="row")
    theirs = rows.loc[~natural & rows["gamma"].notna(), columns].reset_index(names="other_row")
    pairs = ours.merge(theirs, on=_BATCH, suffixes=("", "_other"))
    if pairs.empty:
        return rows
    above = _excess(pairs["gamma"], pairs["gamma_other"])
    objective = _excess(*(_damped(pairs, suffix) for suffix in ("", "_other")))
    # As of a ratio, and the tie itself.
    allowed = (1 + UNEQUAL) * (1 + pairs["error"].fillna(MARKED)) - 1
    allowed = (1 + allowed) * (1 + pairs["error_other"].fillna(MARKED)) - 1
    wrong = objective > allowed
    higher = (above > UNEQUAL) & ~wrong
    flags = {
        "above others": wrong,
        "tie": higher & (above <= allowed),
        "damped": higher & (above > allowed),
    }
    for doubt, chosen in flags.items():
        rows.loc[pairs.loc[chosen, "row"].unique(), doubt] = True
    # Either may be wrong.
    rows.loc[pairs.loc[wrong, "other_row"].unique(), "above others"] = True
    most = pairs.assign(above=np.where(wrong, np.maximum(above, objective), above))
    most = most.dropna(subset="above").sort_values("above", kind="stable")
    most = most.drop_duplicates("row", keep="last").set_index("row")
    rows.loc[most.index, "above_other"] = most["above"]
    rows.loc[most.index, "other"] = most["method_other"]
    return rows


def _damped(pairs: pd.DataFrame, suffix: str) -> pd.Series:
    """Return the root of gamma^2 + lambda (|d| / slope)^2, with the damping of the batch."""
    gamma, norm, slope = (
        pairs[f"{name}{suffix}"].astype(float) for name in ("gamma", "norm", "slope")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        spent = pairs["damping"] * (norm / slope) ** 2
        return np.sqrt(gamma**2 + spent.where(pairs["damping"] > 0, 0.0))


def _excess(first: pd.Series, second: pd.Series) -> pd.Series:
    """Return first / second - 1; 0 where both are the same, 0 or infinity."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (first.astype(float) / second.astype(float) - 1).where(first != second, 0.0)
