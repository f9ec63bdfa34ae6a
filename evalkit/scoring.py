"""Scores of several methods on one batch: one checkpoint and one batch in, rows out."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from evalkit.accuracy import score_error
from evalkit.doubts import MARKED
from evalkit.errors import EvalkitError
from evalkit.indicator import indicator
from evalkit.linearization import Linearization, linearize
from evalkit.linearization.failures import memory_failures
from evalkit.linearization.given import Inputs
from evalkit.linearization.precision import without_autocast
from evalkit.metrics import efficiency
from evalkit.reductions import norm
from evalkit.settings import (
    DEFAULT_DAMPING,
    DEFAULT_METHODS,
    check_damping,
    check_each_once,
    check_seed,
)
from evalkit.tables import SCORE_COLUMNS
from evalkit.updates import Update, compute
from evalkit.updates.registry import parse

SHARERS = 2
"""Methods that a sweep is taken to have with the same cotangents, so that no row depends on it."""


@dataclass(frozen=True)
class Score:
    """One row: a method at one damping on one batch; the fields are the columns of ``score``.

    Attributes:
        method: its name, with settings as written.
        damping: lambda.
        gamma: sqrt(d^T F d) / |d^T g|, smaller is better.
        ratio: gamma / gamma of sgd on the same batch, below 1 is better than SGD.
        efficiency: gamma_floor / gamma, in [0, 1].
        fisher_norm: sqrt(d^T F d).
        slope: d^T g; negative means that the update ascends.
        norm: |d|.
        cosine_sgd: cosine of the angle between d and g.
        iterations: of the solver; empty for methods without one.
        relative_residual: of the solver, recomputed; empty for methods without one.
        converged: of the solver; empty for methods without one.
        solver: ``"cg"``, ``"sketch"`` or ``"direct"``; empty for methods without one.
        error: estimate of the relative error of gamma; above
            :data:`evalkit.doubts.MARKED` the row is not to be relied on.
        dtype: the precision in which the row was found.
    """

    method: str
    damping: float
    gamma: float
    ratio: float
    efficiency: float
    fisher_norm: float
    slope: float
    norm: float
    cosine_sgd: float
    iterations: int | None
    relative_residual: float | None
    converged: bool | None
    solver: str | None
    error: float
    dtype: str


@dataclass(frozen=True)
class _Found:
    """A row without its ratio.

    Attributes:
        curable: the part of its error that more digits would lower.
        row: the rest.
    """

    curable: float
    row: Score


def score(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    likelihood: str = "categorical",
    methods: Sequence[str] | str = DEFAULT_METHODS,
    damping: float | Sequence[float] = DEFAULT_DAMPING,
    seed: int = 0,
    micro_batch_size: int | None = None,
    dtype: str | torch.dtype | None = None,
) -> pd.DataFrame:
    """Score approximate natural-gradient updates of a model on one batch.

    Args:
        model: any deterministic module; it is left as it was.
        inputs: as in :func:`evalkit.linearize`: a tensor, a tuple or list (positional arguments) or
            a mapping (keyword arguments), of tensors or arrays.
        targets: labels or values, sample axis first; as in :func:`evalkit.linearize`, position t
            of the logits is compared with position t of the targets: shift the labels of a causal
            language model with :func:`evalkit.shifted_labels`.
        likelihood: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``.
        methods: names from ``evalkit.methods()``, with settings if wanted
            (``"sf:labels_per_sample=4"``).
        damping: one number or several; each method is scored at each.
        seed: for methods that draw samples.
        micro_batch_size: as in :func:`evalkit.linearize`.
        dtype: as in :func:`evalkit.linearize`.

    Returns:
        A table with a row per method and damping, methods in the order given; the columns are the
        fields of :class:`Score`.

    Raises:
        EvalkitError: something does not fit; the sentence says what to do.
    """
    names, dampings = check_request(methods, damping)
    seed = check_seed(seed)
    with memory_failures(), without_autocast():
        lin = linearize(model, inputs, targets, likelihood, micro_batch_size, dtype)
        return to_frame(score_linearization(lin, names, dampings, seed, again=dtype is None))


def check_request(
    methods: Sequence[str] | str, damping: float | Sequence[float]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return methods and dampings as tuples, before anything expensive is started.

    Raises:
        EvalkitError: a method or setting is unknown, a damping is out of range, one of them is
            given twice, or there are none.
    """
    names = (methods,) if isinstance(methods, str) else tuple(methods)
    # A tensor or array without axes is one number too.
    several: Any = damping if np.ndim(damping) else (damping,)
    dampings = tuple(check_damping(value) for value in several)
    check_each_once("method", names)
    check_each_once("damping", dampings)
    for name in names:
        parse(name)
    return names, dampings


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
    row = _row(lin, name, damping, update, *_jvp_and_norm(lin, update))
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
        shared = {key: update for key, update in updates.items() if update.terms}
        for key, update in updates.items():
            if key not in shared:
                rows[key] = _row(lin, *key, update, *_jvp_and_norm(lin, update))
        products = _shared_products(lin, list(shared.values()))
        for (key, update), jvp in zip(shared.items(), products, strict=True):
            assert update.cotangents is not None
            length = lin.pulled_norm(update.cotangents, jvp)
            rows[key] = _row(lin, *key, update, jvp, length)
    return rows


def _shared_products(lin: Linearization, updates: Sequence[Update]) -> Iterator[Tensor]:
    """Return J d of one method's updates, sums of a few fixed cotangents with weights, one by one.

    Products of the cotangents themselves serve every damping, and every method with the same ones.
    """
    fixed = {id(term.cotangents): term.cotangents for one in updates for term in one.terms}
    matrices: dict[int, Tensor] = {}
    several = SHARERS * len(updates) if len(updates) > 1 else 1
    if fixed and lin.products_pay(len(fixed), several):
        matrices = {
            key: lin.shared(("products", key), partial(lin.sample_products, cotangents))
            for key, cotangents in fixed.items()
        }
    for update in updates:
        assert update.cotangents is not None
        if not matrices:
            yield lin.weighted_product([(t.cotangents, t.weights) for t in update.terms])
            continue
        parts = [term.weights @ matrices[id(term.cotangents)] for term in update.terms]
        yield torch.stack(parts).sum(0).view_as(lin.logits)


def to_frame(rows: Sequence[Score]) -> pd.DataFrame:
    """Return rows as a table with the columns of the contract."""
    frame = pd.DataFrame([vars(row) for row in rows], columns=list(SCORE_COLUMNS))
    return frame.astype(
        {
            "iterations": "Int64",
            "relative_residual": "float64",
            "converged": "boolean",
            "solver": "str",
            "error": "float64",
            "dtype": "str",
        }
    )


def _row(
    lin: Linearization, name: str, damping: float, update: Update, jvp: Tensor, length: float
) -> _Found:
    """Return the row of an update d from J d and |d|, without its ratio."""
    found = indicator(lin, jvp)
    if update.slope is not None:
        found = replace(found, slope=update.slope)
    product = length * lin.gradient_norm
    efficient = efficiency(found.gamma, lin.gamma_floor)
    part = 0.0 if math.isnan(efficient) else efficient
    error = score_error(lin, update, found, length, part)
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
            iterations=update.iterations,
            relative_residual=update.relative_residual,
            converged=update.converged,
            solver=update.solver,
            error=error.total,
            dtype=str(lin.logits.dtype).removeprefix("torch."),
        ),
    )


def _gradient_row(lin: Linearization) -> _Found:
    """Return the row of the gradient itself, which ratios refer to."""
    update = Update(cotangents=lin.logit_gradients)
    return _row(lin, "sgd", 0.0, update, lin.gradient_jvp, lin.gradient_norm)


def _with_ratio(found: _Found, reference: _Found) -> Score:
    """Return a row with its gamma over that of the gradient."""
    row, gamma = found.row, reference.row.gamma
    return replace(row, ratio=row.gamma / gamma if 0 < gamma < math.inf else math.nan)


def _jvp_and_norm(lin: Linearization, update: Update) -> tuple[Tensor, float]:
    """Return J d and |d|, without forming d where the update comes as cotangents."""
    c = update.cotangents
    if c is None:
        d = update.direction(lin)
        return lin.jvp(d), norm(d)
    if c is lin.logit_gradients:
        return lin.gradient_jvp, lin.gradient_norm
    product = lin.kernel_product(c)
    return product, lin.pulled_norm(c, product)
