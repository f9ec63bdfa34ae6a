"""Improved empirical Fisher, with the Gram matrix damped."""

from evalkit.linearization import Linearization
from evalkit.updates.registry import method
from evalkit.updates.targets import right_side
from evalkit.updates.types import CotangentUpdate
from evalkit.updates.weighted import damped_sum


@method("ief")
def ief(lin: Linearization, damping: float) -> CotangentUpdate:
    """Improved empirical Fisher: d = G^T (G G^T + lambda I)^-1 s, s_n = |r_n|^2 (paper, eq. 8).

    Undamped, a step -eta d lowers the loss of sample n by eta |r_n|^2 to first order.
    """
    return damped_sum(lin, lin.gram_factor, right_side(lin, "ief"), damping)
