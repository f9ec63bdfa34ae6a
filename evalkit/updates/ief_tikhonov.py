"""Improved empirical Fisher, with the Fisher matrix damped."""

from evalkit.linearization import Linearization
from evalkit.updates.registry import method
from evalkit.updates.types import CotangentUpdate
from evalkit.updates.weighted import damped_sum


@method("ief-tikhonov")
def ief_tikhonov(lin: Linearization, damping: float) -> CotangentUpdate:
    """Tikhonov form of iEF: d = (F* + lambda I)^-1 g, F* = G^T diag(s)^-1 G, s_n = |r_n|^2.

    Equal to G^T (G G^T + lambda diag(s))^-1 s. With h = sqrt(s) and K = diag(h)^-1 G G^T diag(h)^-1
    that is G^T diag(h)^-1 (K + lambda I)^-1 h, which one factorisation of K solves for every
    lambda. Samples with r_n = 0 have no gradient and take no part. Undamped it is ``ief``.
    """
    h = lin.logit_gradient_norms
    inverse = h.reciprocal().where(h > 0, 0.0)
    shape = (-1,) + (1,) * (lin.logits.dim() - 1)
    factor = lin.shared(
        "ief-tikhonov",
        lambda: lin.factor_of((inverse.view(shape) * lin.logit_gradients).unsqueeze(0)),
    )
    return damped_sum(lin, factor, h, damping, scales=inverse)
