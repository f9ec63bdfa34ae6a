"""Scores of random small models are within their stated error of exact arithmetic."""

from __future__ import annotations

import itertools
import math
import warnings
from functools import cache

import evalkit
from evalkit.storage.rows import Score
from tests.support import exact, exact_gammas, exact_models
from tests.support.strategies import Plan

METHODS = ("sgd", "ef", "ief", "ief-tikhonov", "fgn", "fgn-tikhonov", "polyak", "sf", "ngd")
DAMPINGS = (0.0, 1e-12, 1e-3, 1.0, 1e6)
DTYPES = (None, "float32", "float64")
MANY_BITS = 1 << 15
"""In which 1 - p keeps digits at logits of 1e4."""
MOST = 1e290
"""Gammas beyond it, either way, are not compared: float64 ends there."""


def check_scores(plan: Plan, methods: tuple[str, ...] = METHODS) -> None:
    """Every row states an error that bounds how far its gamma is from the exact one.

    A refusal is a sentence; a row that nobody knows states an infinite error, or the exact
    infinity of a slope of zero.
    """
    batch = plan.make()
    lin = evalkit.linearize(*batch, dtype="float64")
    rows = {(method, dtype): scored(plan, method, dtype) for method in methods for dtype in DTYPES}
    logits, jacobian = exact_models.jacobian(batch)
    drawn = exact_models.drawn(lin)

    @cache
    def make(bits: int) -> exact.Batch:
        with exact.bits(bits):
            return exact_models.batch(logits, jacobian, lin.targets, plan.likelihood, drawn)

    for method, damping in itertools.product(methods, DAMPINGS):
        found = [rows[method, dtype][damping] for dtype in DTYPES if rows[method, dtype]]
        if not found:
            continue
        try:
            wanted = exact_gammas.exact_gamma(make, method, damping)
        except exact.Unknown:
            wanted = math.nan
        for row in found:
            check_row(row, wanted, f"{method} at {damping:g} in {row.dtype} of {plan}")


def scored(plan: Plan, method: str, dtype: str | None) -> dict[float, Score]:
    """Rows by damping, none where they are refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            table = evalkit.score(*plan.make(), methods=method, damping=DAMPINGS, dtype=dtype)
        except evalkit.EvalkitError:
            return {}
    return {row.damping: row for row in table.itertuples()}


def check_row(row: Score, wanted: float, where: str) -> None:
    """Hold one row to the exact gamma, NaN where it is not known."""
    assert row.error >= 0, where
    if row.error == math.inf:
        return
    if math.isnan(wanted):
        # The bits of the oracle end before float64 does: the floor proves what reaches it.
        proved = row.gamma == math.inf or row.efficiency * (1 + row.error) >= 1
        assert proved, f"{where}: {row.gamma} stated where nothing is known"
        return
    if not 1 / MOST < wanted < MOST:
        return
    off = abs(row.gamma / wanted - 1)
    assert off <= row.error, f"{where}: {row.gamma} for {wanted}, off {off:.3g} > {row.error:.3g}"
    floor = row.efficiency * row.gamma if row.gamma < math.inf else 0.0
    assert floor <= wanted * (1 + 1e-6), f"{where}: {wanted} is below the floor, {floor}"


def check_batch(plan: Plan) -> None:
    """What is measured of a batch besides scores is that of exact arithmetic."""
    lin = evalkit.linearize(*plan.make(), dtype="float64")
    logits, jacobian = exact_models.jacobian(plan.make())
    with exact.bits(MANY_BITS):
        one = exact_models.batch(
            logits, jacobian, lin.targets, plan.likelihood, exact_models.drawn(lin)
        )
        terms = sum(one.floor_terms[1:], one.floor_terms[0])
        floor = float((1 / terms.sqrt()).mid()) if terms > 0 else math.inf
        losses = [float(loss.mid()) for loss in one.losses]
        logit_norms = [float(exact.dot([r], [r]).sqrt().mid()) for r in one.residual]
        norms = [float(norm.mid()) for norm in exact_models.gradient_norms(one)]
    tolerance = 1e-12 * (1 + float(logits.abs().max()))
    assert near(lin.gamma_floor, floor, tolerance), (lin.gamma_floor, floor, plan)
    for found, wanted in (
        (lin.losses, losses),
        (lin.logit_gradient_norms, logit_norms),
        (lin.gradient_norms, norms),
    ):
        pairs = zip(found.tolist(), wanted, strict=True)
        assert all(near(a, b, tolerance) for a, b in pairs), (found, wanted, plan)


def near(found: float, wanted: float, tolerance: float) -> bool:
    """Whether two numbers agree relative to their size, as far as float64 goes."""
    if found == wanted or math.isnan(wanted):  # the bits that there are do not tell
        return True
    if wanted > MOST:
        return found > MOST
    return abs(found - wanted) <= tolerance * abs(wanted) + 1 / MOST
