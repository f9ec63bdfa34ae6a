"""Gram matrices of per-sample gradients, K_nm = G_n . G_m, without the (N, P) matrix G.

G_n = J_n^T c_n for one-sample cotangents c_n. The matrix is a sum over parameters: layers with a
rule add theirs without gradients formed, all others fall back to per-sample gradients of those
parameters only.
"""

from __future__ import annotations

from torch import Tensor

from evalkit.forward import Recording
from evalkit.layer_rules import linear_gram, linear_parameters
from evalkit.per_sample import (
    CannotVectorizeError,
    PerSample,
    defining_gradients,
    per_sample_gram,
    vectorized_gradients,
)
from evalkit.reductions import power_of_two

ROUTES: tuple[PerSample | None, ...] = (None, vectorized_gradients, defining_gradients)
"""From fast to slow: rules where there are some, all vectorised, all by definition. The first two
take axis 0 of every tensor to be the sample axis and samples not to influence each other."""


def gram_matrix(recording: Recording, cotangents: Tensor, route: PerSample | None) -> Tensor:
    """Return the inner products of J_n^T c_kn by one route.

    Each cotangent is scaled to order one by a power of two before it is pulled back, and K scaled
    back in float64, so that a saturated sample keeps its digits where its gradient would underflow.

    Args:
        recording: the forward pass.
        cotangents: c, (K, N, ..., C) float64: K cotangents per sample.
        route: one of :data:`ROUTES`.

    Returns:
        (K N, K N) float64; row k N + n belongs to cotangent k of sample n.

    Raises:
        CannotVectorizeError: the route is ``vectorized_gradients`` and the model cannot be.
    """
    scales = power_of_two(cotangents.flatten(2), dim=2)
    shape = (*scales.shape, *([1] * (cotangents.dim() - 2)))
    scaled = (cotangents / scales.view(shape)).to(recording.logits.dtype)
    rows = scales.flatten()
    return rows[:, None] * _scaled_gram(recording, scaled, route) * rows


def _scaled_gram(recording: Recording, cotangents: Tensor, route: PerSample | None) -> Tensor:
    names = list(recording.parameters)
    if route is not None:
        return per_sample_gram(recording, cotangents, names, route)
    ruled = linear_parameters(recording)
    others = [name for name in names if name not in ruled]
    gram = linear_gram(recording, cotangents, ruled)
    try:
        return gram + per_sample_gram(recording, cotangents, others, vectorized_gradients)
    except CannotVectorizeError:
        return gram + per_sample_gram(recording, cotangents, others, defining_gradients)
