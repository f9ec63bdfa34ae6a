"""Improved empirical Fisher, with the Fisher matrix damped."""

from evalkit.linearization import Linearization
from evalkit.updates.registry import method
from evalkit.updates.types import CotangentUpdate
from evalkit.updates.weighted import tikhonov_sum


@method("ief-tikhonov")
def ief_tikhonov(lin: Linearization, damping: float) -> CotangentUpdate:
    """Tikhonov form of iEF: d = (F* + lambda I)^-1 g, F* = G^T diag(s)^-1 G, s_n = |r_n|^2.

    Undamped it is ``ief``.
    """
    return tikhonov_sum(lin, "ief-tikhonov", lin.logit_gradient_norms, damping)
