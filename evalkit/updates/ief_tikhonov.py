"""Improved empirical Fisher, with the Fisher matrix damped."""

import math
from dataclasses import replace

from evalkit.linearization import Linearization
from evalkit.rounding import saturated
from evalkit.updates.registry import method
from evalkit.updates.types import CotangentUpdate, Rounding
from evalkit.updates.weighted import tikhonov_sum


@method("ief-tikhonov")
def ief_tikhonov(lin: Linearization, damping: float) -> CotangentUpdate:
    """Tikhonov form of iEF: d = (F* + lambda I)^-1 g, F* = G^T diag(s)^-1 G, s_n = |r_n|^2.

    Undamped it is ``ief``.
    """
    found = tikhonov_sum(lin, "ief-tikhonov", lin.logit_gradient_norms, damping)
    if saturated(lin).any():  # G_n / |r_n| has a length however small r_n is: nobody knows it
        return replace(found, rounding=Rounding(math.inf, math.inf))
    return found
