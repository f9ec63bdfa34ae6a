"""Scores of several methods on one batch: one checkpoint and one batch in, rows out."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evalkit.curvature import PastTask
from evalkit.doubts import MARKED
from evalkit.errors import EvalkitError, TooLittleMemoryError
from evalkit.indicator import indicator
from evalkit.linearization import Linearization
from evalkit.scoring.accuracy import score_error
from evalkit.scoring.metrics import efficiency
from evalkit.scoring.products import products
from evalkit.settings import Others
from evalkit.storage.rows import Score
from evalkit.updates import CotangentUpdate, Update, compute
from evalkit.updates.foreseen import check_needs
from evalkit.updates.parser import parse
from evalkit.updates.registry import takes_past


@dataclass(frozen=True)
class _Found:
    """A row without its ratio.

    Attributes:
        curable: the part of its error that more digits would lower.
        row: the rest.
    """

    curable: float
    row: Score


def score_linearization(
    lin: Linearization,
    methods: Sequence[str],
    dampings: Sequence[float],
    seed: int,
    on_iteration: Callable[[int, float], None] | None = None,
    again: bool = True,
    others: Others = "block",
    past: PastTask | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    keep_float32: bool = True,
) -> list[Score]:
    """Return the rows of one batch: a row per method and damping, methods outermost.

    A row depends on its own method and damping, not on what else is asked for, but for rounding:
    the dampings of a sweep may share products (:mod:`evalkit.scoring.products`). Rows in float32
    whose error may exceed :data:`evalkit.doubts.MARKED` are found again in float64, where the model
    can be evaluated in it.

    Args:
        lin: the model and batch.
        methods: names, with settings if wanted.
        dampings: each method is scored at each.
        seed: for methods that draw samples.
        on_iteration: called by iterative methods with the iteration and its gamma.
        again: False leaves every row in the precision of the linearization.
        others: what methods by layers make of parameters without factors.
        past: past tasks, for methods that have them as an input.
        optimizer: of the training, for methods that have it as an input.
        keep_float32: whether rows that float64 has too little memory for stay in float32, as where
            the batch cannot be evaluated in smaller parts.

    Raises:
        TooLittleMemoryError: there is, and they do not.
        EvalkitError: methods by layers need more than there is, the past tasks are of another
            model, or as :func:`compute`.
    """
    check_needs(lin, methods, others)
    if past is not None and any(takes_past(parse(name)[0]) for name in methods):
        past.check(lin.parameters)
    keys = list(itertools.product(methods, dampings))
    again = again and lin.logits.dtype == torch.float32
    rows = _rows(lin, keys, seed, on_iteration, others, past, optimizer)
    reference = _gradient_row(lin)
    doubtful = [key for key in keys if rows[key].curable > MARKED]
    if again and (doubtful or reference.curable > MARKED):
        try:
            double = lin.in_float64()
            found = _rows(double, doubtful, seed, on_iteration, others, past, optimizer)
            reference = _gradient_row(double) if reference.curable > MARKED else reference
            rows |= found
        except EvalkitError as error:  # what there is stays, with its error
            if isinstance(error, TooLittleMemoryError) and not keep_float32:
                raise
            warnings.warn(f"scores that need float64 stay in float32: {error}", stacklevel=2)
    return [_with_ratio(rows[key], reference) for key in keys]


def score_update(lin: Linearization, name: str, damping: float, update: Update) -> Score:
    """Return the row of one update, registered or not.

    Args:
        lin: the model and batch.
        name: what the row calls the method.
        damping: that the update was computed with.
        update: as methods return it.
    """
    row = _row(lin, name, damping, update, *next(products(lin, [update])))
    return _with_ratio(row, _gradient_row(lin))


def _rows(
    lin: Linearization,
    keys: Sequence[tuple[str, float]],
    seed: int,
    on_iteration: Callable[[int, float], None] | None,
    others: Others,
    past: PastTask | None,
    optimizer: torch.optim.Optimizer | None,
) -> dict[tuple[str, float], _Found]:
    """Return the rows of methods and dampings, without their ratios."""
    _ = lin.gram  # before J g, which then is the same whichever method comes first
    rows: dict[tuple[str, float], _Found] = {}
    for name, group in itertools.groupby(keys, key=lambda key: key[0]):
        updates = {
            key: compute(name, lin, key[1], seed, on_iteration, others, past, optimizer)
            for key in group
        }
        found = products(lin, list(updates.values()))
        for (key, update), pair in zip(updates.items(), found, strict=True):
            rows[key] = _row(lin, *key, update, *pair)
    return rows


def _row(
    lin: Linearization, name: str, damping: float, update: Update, jvp: Tensor, length: float
) -> _Found:
    """Return the row of an update d from J d and |d|, without its ratio."""
    found = indicator(lin, jvp)
    if isinstance(update, CotangentUpdate) and update.slope is not None:
        found = replace(found, slope=update.slope)
    product = length * lin.gradient_norm
    efficient = efficiency(found.gamma, lin.gamma_floor)
    part = 0.0 if math.isnan(efficient) else efficient
    error = score_error(lin, update, found, length, part)
    report = update.report
    return _Found(
        error.curable,
        Score(
            method=name,
            damping=damping,
            gamma=found.gamma,
            ratio=math.nan,
            efficiency=efficient,
            fisher_norm=found.fisher_norm,
            slope=found.slope,
            norm=length,
            cosine_sgd=found.slope / product if product > 0 else math.nan,
            iterations=report.iterations if report else None,
            relative_residual=report.relative_residual if report else None,
            converged=report.converged if report else None,
            solver=report.solver if report else None,
            error=error.total,
            dtype=str(lin.logits.dtype).removeprefix("torch."),
        ),
    )


def undefined_score(row: Score) -> str:
    """Return a sentence where the numbers of a row cannot be, empty for all others.

    A slope of zero makes gamma infinite, and a ratio may be undefined beside one that is; what they
    are made of is finite.

    Args:
        row: of any method.
    """
    parts = {"Fisher norm": row.fisher_norm, "slope": row.slope, "length": row.norm}
    found = [f"{name} {value:g}" for name, value in parts.items() if not math.isfinite(value)]
    if not found and not math.isnan(row.gamma):
        return ""
    return (
        f"expected finite scores, found {', '.join(found) or 'gamma nan'} at damping "
        f"{row.damping:g}; score in float64 (`dtype=float64`), or check the model at this batch"
    )


def _gradient_row(lin: Linearization) -> _Found:
    """Return the row of the gradient itself, which ratios refer to."""
    update = CotangentUpdate(lin.logit_gradients)
    return _row(lin, "sgd", 0.0, update, lin.gradient_jvp, lin.gradient_norm)


def _with_ratio(found: _Found, reference: _Found) -> Score:
    """Return a row with its gamma over that of the gradient."""
    row, gamma = found.row, reference.row.gamma
    return replace(row, ratio=row.gamma / gamma if 0 < gamma < math.inf else math.nan)
