"""Improved empirical Fisher, with the Fisher matrix damped."""

from evalkit.factor import factorize
from evalkit.linearization import Linearization
from evalkit.updates.registry import Update, method
from evalkit.updates.weighted import weighted_sum


@method("ief-tikhonov")
def ief_tikhonov(lin: Linearization, damping: float) -> Update:
    """Tikhonov form of iEF: d = (F* + lambda I)^-1 g, F* = G^T diag(s)^-1 G, s_n = |r_n|^2.

    Equal to G^T (G G^T + lambda diag(s))^-1 s. With h = sqrt(s) and K = diag(h)^-1 G G^T diag(h)^-1
    that is G^T diag(h)^-1 (K + lambda I)^-1 h, which one factorisation of K solves for every
    lambda. Samples with r_n = 0 have no gradient and take no part. Undamped it is ``ief``.
    """
    h = lin.logit_gradient_norms
    inverse = h.reciprocal().where(h > 0, 0.0)
    factor = lin.shared(
        "ief-tikhonov", lambda: factorize(inverse[:, None] * lin.gram * inverse[None, :])
    )
    return weighted_sum(lin, inverse * factor.solve(h, damping))
