"""Sampled Fisher."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.curvature.labels import combination, left_by
from evalkit.factor import GramFactor
from evalkit.linearization import Linearization
from evalkit.rounding import row_noise
from evalkit.updates.registry import method
from evalkit.updates.types import CotangentUpdate, Rounding, Term


@dataclass(frozen=True)
class _Sample:
    """Sampled logit gradients, what they say of g, and their factorised Gram matrix.

    Attributes:
        logit_gradients: rs of each draw, K times (N, ..., C).
        factor: the factor of Gs Gs^T, (K N, K N).
        noise: how far rounding moves the rows of Gs, (K N,).
        shares: h with g = Gs^T h + g', (K N,).
        rest: cotangents of g', like logits; None where g lies in the span of Gs.
        slopes: Gs g', (K N,).
        square: |g'|^2.
        dropped: how long g' may be where it counts as zero and is not known to be.
    """

    logit_gradients: tuple[Tensor, ...]
    factor: GramFactor
    noise: Tensor
    shares: Tensor
    rest: Tensor | None
    slopes: Tensor
    square: float
    dropped: float = 0.0


@method("sf")
def sf(
    lin: Linearization, damping: float, seed: int = 0, labels_per_sample: int = 1
) -> CotangentUpdate:
    """Sampled Fisher: (Gs^T Gs / K + lambda I)^-1 g with sampled labels (paper, eq. 47-49).

    Gs (K N, P) holds gradients for K labels per sample drawn from p(y | z). By the Woodbury
    identity the direction is (g - Gs^T a) / lambda with a = (Gs Gs^T + K lambda I)^-1 Gs g. The
    factor 1 / lambda is left out, so that a near-zero damping loses nothing.

    Labels drawn from a trained model are mostly those of the data, and g - Gs^T a cancels. With
    g = Gs^T h + g', h taken sample by sample, it is

        d = g' + Gs^T b,  b = (Gs Gs^T + K lambda I)^-1 (K lambda h - Gs g').

    Where g' = 0 (g in the span of Gs, as with scalar outputs or few parameters) and lambda = 0, the
    factor lambda is left out of d as well.
    """
    sample = lin.shared(
        ("sf", seed, labels_per_sample), lambda: _draw(lin, seed, labels_per_sample)
    )
    h, ridge = sample.shares, labels_per_sample * damping
    right = right_side(h, sample.slopes, ridge, labels_per_sample, sample.rest is None)
    b = sample.factor.solve(right, ridge)
    parts = zip(sample.logit_gradients, b.view(labels_per_sample, -1), strict=True)
    terms = [Term(rs, part) for rs, part in parts]
    if sample.rest is not None:
        terms.insert(0, Term(sample.rest, torch.ones_like(lin.losses)))
    # (g' + Gs^T b)^T (g' + Gs^T h)
    product = sample.factor.image(right, ridge)  # Gs Gs^T b
    slope = sample.square + float(sample.slopes @ (b + h) + h @ product)
    return CotangentUpdate.summed(
        terms,
        slope=slope,
        rounding=_rounding(lin, sample, right, ridge, b, product, slope),
    )


def right_side(h: Tensor, slopes: Tensor, ridge: float, draws: int, spanned: bool) -> Tensor:
    """Return what b solves for: (Gs Gs^T + K lambda I) b = K lambda h - Gs g'.

    Args:
        h: with g = Gs^T h + g', (K N,).
        slopes: Gs g', (K N,).
        ridge: K lambda.
        draws: K.
        spanned: whether g' = 0; then a factor lambda that is 0 is left out.
    """
    return draws * h if spanned and not ridge else ridge * h - slopes


def _rounding(
    lin: Linearization,
    sample: _Sample,
    right: Tensor,
    ridge: float,
    b: Tensor,
    product: Tensor,
    slope: float,
) -> Rounding:
    """Return how far rounding moves d = g' + Gs^T b and its slope.

    Beside what moves the sum Gs^T b, rounding moves Gs g' by |g'| v_n, and g' itself; directions of
    Gs that it hides would take a part of g' that Gs g' does not tell of. The slope is
    a minimum over the span of Gs, so that changes of its rows and of g' move it to first order by

        2 b^T (delta Gs) d + 2 (delta g')^T d,

    with h - Gs d in place of b where the factor lambda is left out of d; and the terms that it is
    summed from are rounded.

    Args:
        lin: the model and batch.
        sample: what was drawn.
        right: what b solves for.
        ridge: K lambda.
        b: the weights.
        product: Gs Gs^T b.
        slope: d^T g.
    """
    factor, h = sample.factor, sample.shares
    noise, rest = factor.with_decomposition(sample.noise), math.sqrt(sample.square)
    relative = float(sample.noise.norm()) / max(float(factor.norms.norm()), 1e-300)
    moved = factor.movement(right, ridge, sample.noise, lin.unit)
    moved += factor.shift(sample.noise, ridge) * rest + relative * rest
    moved += factor.overlooked(ridge) * rest + sample.dropped
    if sample.dropped and not ridge:  # without damping g' is all that there is of d
        moved = math.inf
    left = b if ridge or sample.rest is not None else h - product
    length = factor.length(b) if sample.rest is None else math.sqrt(max(slope, 0.0))
    turned = 2 * length * (float((left * noise).norm()) + relative * rest + sample.dropped)
    summed = rest * (2 * relative * rest + float(((b + h) * noise).norm()))
    summed += 2 * lin.unit * float(h.norm() * product.norm())
    return Rounding(moved=moved, slope=turned + summed)


def _draw(lin: Linearization, seed: int, labels_per_sample: int) -> _Sample:
    r = lin.sampled_logit_gradients(seed, labels_per_sample)
    factor = lin.factor_of(r)
    noise = row_noise(lin, r, factor.norms)
    h, rest = combination(lin, r)
    dropped = 0.0 if rest is not None else _dropped(lin, r, h)
    if rest is not None and factor.rank >= lin.num_params:
        slopes = torch.cat([lin.sample_dots(draw, lin.gradient_jvp) for draw in r])
        h, rest = factor.solve(slopes, 0.0), None
    if rest is None:
        return _Sample(tuple(r), factor, noise, h, None, torch.zeros_like(h), 0.0, dropped)
    jvp, length = lin.gradient_jvp, lin.gradient_norm
    if rest is not lin.logit_gradients:
        jvp = lin.kernel_product(rest)
        length = lin.pulled_norm(rest, jvp)
    slopes = torch.cat([lin.sample_dots(draw, jvp) for draw in r])
    return _Sample(tuple(r), factor, noise, h, rest, slopes, length**2)


def _dropped(lin: Linearization, drawn: Tensor, h: Tensor) -> float:
    """Return how long the sum of gradients r_n - sum_k h_kn rs_kn may be that counts as zero.

    Args:
        lin: the model and batch.
        drawn: rs, (K, N, ..., C).
        h: (K N,).
    """
    norms = lin.logit_gradient_norms
    relative = left_by(lin, drawn, h) / norms.where(norms > 0, 1.0)
    return float((relative * lin.gradient_norms).norm())
