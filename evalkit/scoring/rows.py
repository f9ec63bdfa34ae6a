"""Scores of several methods on one batch: one checkpoint and one batch in, rows out."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from evalkit.doubts import MARKED
from evalkit.errors import EvalkitError
from evalkit.indicator import indicator
from evalkit.linearization import Linearization
from evalkit.reductions import norm
from evalkit.scoring.accuracy import score_error
from evalkit.scoring.metrics import efficiency
from evalkit.solvers.kernel import sample_products
from evalkit.storage.rows import Score
from evalkit.updates import CotangentUpdate, Update, VectorUpdate, compute
from evalkit.work import TYPICAL, kernel_work, product_work

DEAR = 0.01
"""Seconds of a product, by typical rates, from which on the dampings of a sweep share products. The
rows of smaller models are the same to the last digit however many dampings are asked for."""

SHARERS = 2
"""Methods that a sweep is taken to have with the same cotangents, so that no row depends on it."""


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
) -> list[Score]:
    """Return the rows of one batch: a row per method and damping, methods outermost.

    A row depends on its own method and damping and on the number of dampings, not on what else is
    asked for. Rows in float32 whose error may exceed :data:`evalkit.doubts.MARKED` are found
    again in float64, where the model can be evaluated in it.

    Args:
        lin: the model and batch.
        methods: names, with settings if wanted.
        dampings: each method is scored at each.
        seed: for methods that draw samples.
        on_iteration: called by iterative methods with the iteration and its gamma.
        again: False leaves every row in the precision of the linearization.
    """
    keys = list(itertools.product(methods, dampings))
    again = again and lin.logits.dtype == torch.float32
    rows = _rows(lin, keys, seed, on_iteration)
    reference = _gradient_row(lin)
    doubtful = [key for key in keys if rows[key].curable > MARKED]
    if again and (doubtful or reference.curable > MARKED):
        try:
            double = lin.in_float64()
            found = _rows(double, doubtful, seed, on_iteration)
            reference = _gradient_row(double) if reference.curable > MARKED else reference
            rows |= found
        except EvalkitError as error:  # what there is stays, with its error
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
    row = _row(lin, name, damping, update, *next(_products(lin, [update])))
    return _with_ratio(row, _gradient_row(lin))


def _rows(
    lin: Linearization,
    keys: Sequence[tuple[str, float]],
    seed: int,
    on_iteration: Callable[[int, float], None] | None,
) -> dict[tuple[str, float], _Found]:
    """Return the rows of methods and dampings, without their ratios."""
    rows: dict[tuple[str, float], _Found] = {}
    for name, group in itertools.groupby(keys, key=lambda key: key[0]):
        updates = {key: compute(name, lin, key[1], seed, on_iteration) for key in group}
        found = _products(lin, list(updates.values()))
        for (key, update), products in zip(updates.items(), found, strict=True):
            rows[key] = _row(lin, *key, update, *products)
    return rows


def _products(lin: Linearization, updates: Sequence[Update]) -> Iterator[tuple[Tensor, float]]:
    """Return J d and |d| of one method's updates, one by one, without forming d where it can."""
    matrices = _term_products(lin, updates)
    for update in updates:
        if isinstance(update, VectorUpdate):
            yield lin.jvp(update.vector), norm(update.vector)
            continue
        c = update.cotangents
        if c is lin.logit_gradients:
            yield lin.gradient_jvp, lin.gradient_norm
            continue
        if matrices and update.terms:
            parts = [term.weights @ matrices[term.cotangents] for term in update.terms]
            product = torch.stack(parts).sum(0).view_as(lin.logits)
        elif update.terms:
            product = lin.weighted_product([(t.cotangents, t.weights) for t in update.terms])
        else:
            product = lin.kernel_product(c)
        yield product, lin.pulled_norm(c, product)


def _term_products(lin: Linearization, updates: Sequence[Update]) -> dict[Tensor, Tensor]:
    """Return J J_n^T c_n of the fixed cotangents in updates; none where it would cost more.

    They serve every damping, and every method with the same cotangents. Keys are the tensors
    themselves, which are equal to no other and stay alive as long as what is kept of them.
    """
    summed = [one for one in updates if isinstance(one, CotangentUpdate) and one.terms]
    fixed = dict.fromkeys(term.cotangents for one in summed for term in one.terms)
    several = SHARERS * len(summed) if len(summed) > 1 else 1
    product = TYPICAL.seconds(product_work(lin))
    if not fixed or product < DEAR:
        return {}
    if TYPICAL.seconds(kernel_work(lin, len(fixed))) >= several * product:
        return {}
    return {c: lin.shared(("products", c), partial(sample_products, lin, c)) for c in fixed}


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


def _gradient_row(lin: Linearization) -> _Found:
    """Return the row of the gradient itself, which ratios refer to."""
    update = CotangentUpdate(lin.logit_gradients)
    return _row(lin, "sgd", 0.0, update, lin.gradient_jvp, lin.gradient_norm)


def _with_ratio(found: _Found, reference: _Found) -> Score:
    """Return a row with its gamma over that of the gradient."""
    row, gamma = found.row, reference.row.gamma
    return replace(row, ratio=row.gamma / gamma if 0 < gamma < math.inf else math.nan)
