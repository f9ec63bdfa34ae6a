"""What EF and iEF share: sums of per-sample gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evalkit.factor import SMALLEST, GramFactor
from evalkit.linearization import Linearization
from evalkit.reductions import inverse
from evalkit.rounding import gradient_noise, hidden_rows
from evalkit.updates.types import CotangentUpdate, Rounding, Term


def damped_sum(
    lin: Linearization,
    factor: GramFactor,
    right: Tensor,
    damping: float,
    scales: Tensor | None = None,
) -> CotangentUpdate:
    """Return d = G^T h a, a = (K + lambda I)^-1 b, K = h G G^T h, h diagonal, as an update.

    Its slope d^T g = sum_n G_n . d is 1^T h^-1 K (K + lambda I)^-1 b, without cancellation.

    Args:
        lin: the model and batch.
        factor: the factor of K.
        right: b, (N,).
        damping: lambda >= 0.
        scales: h, (N,); None for ones.
    """
    h = torch.ones_like(right) if scales is None else scales
    ones = inverse(h)
    weights = factor.solve(right, damping)
    slope = float(ones @ factor.image(right, damping))
    noise = h * gradient_noise(lin)
    moved = factor.movement(right, damping, noise, lin.unit)
    moved += _of_hidden_rows(lin, factor, right, damping, h)
    return CotangentUpdate.summed(
        [Term(lin.logit_gradients, h * weights)],
        slope=slope,
        rounding=Rounding(
            moved=moved,
            slope=_slope_noise(factor, weights, ones, damping, noise, lin.unit),
        ),
    )


def tikhonov_sum(lin: Linearization, name: str, h: Tensor, damping: float) -> CotangentUpdate:
    """Return d = (F_h + lambda I)^-1 g with F_h = G^T diag(h)^-2 G, as an update.

    Equal to G^T (G G^T + lambda diag(h)^2)^-1 h^2. With K = diag(h)^-1 G G^T diag(h)^-1 that is
    G^T diag(h)^-1 (K + lambda I)^-1 h, which one factorisation of K solves for every lambda.
    Samples with h_n = 0 have no gradient and take no part.

    Args:
        lin: the model and batch.
        name: the method's, under which the factor is shared.
        h: the lengths that per-sample gradients are divided by, (N,).
        damping: lambda >= 0.
    """
    scales = inverse(h)
    factor = lin.shared(
        name, lambda: lin.factor_of(lin.weighted_logit_gradients(scales).unsqueeze(0))
    )
    return damped_sum(lin, factor, h, damping, scales=scales)


def _of_hidden_rows(
    lin: Linearization, factor: GramFactor, right: Tensor, damping: float, h: Tensor
) -> float:
    """Return how far rows that only count as zero would move d.

    A row of length e adds at most e (|b| + e |d|) / lambda, and without damping whatever its part
    of b asks for.
    """
    hidden = hidden_rows(lin, factor.norms)
    if not hidden.any():
        return 0.0
    if damping < SMALLEST:
        return math.inf
    lengths = (h * lin.gradient_norms)[hidden]
    asked = right[hidden].abs() + lengths * factor.length(factor.solve(right, damping))
    return float((lengths * asked).norm()) / damping


def _slope_noise(
    factor: GramFactor, weights: Tensor, ones: Tensor, damping: float, noise: Tensor, unit: float
) -> float:
    """Return an estimate of how far rounding moves d^T g.

    With w = h^-1 1 - (K + lambda I)^-1 K h^-1 1, which vanishes without damping, a change of K by
    delta K moves 1^T h^-1 K (K + lambda I)^-1 b by w^T delta K a.
    """
    w = ones - factor.image(ones, damping)
    size, left = (float((x * noise).square().sum().sqrt()) for x in (weights, w))
    moved = size * factor.length(w) + left * factor.length(weights)
    if factor.squared:
        norms = factor.norms
        moved += unit * math.sqrt(2) * float((weights * norms).norm() * (w * norms).norm())
    return moved
