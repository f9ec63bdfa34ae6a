"""Empirical Fisher."""

from evalkit.linearization import Linearization
from evalkit.updates.registry import method
from evalkit.updates.targets import right_side
from evalkit.updates.types import CotangentUpdate
from evalkit.updates.weighted import damped_sum


@method("ef")
def ef(lin: Linearization, damping: float) -> CotangentUpdate:
    """Empirical Fisher: d = G^T (G G^T + lambda I)^-1 1 (paper, eq. 5).

    Equal to (G^T G + lambda I)^-1 g. Undamped, a step lowers the loss of every sample by the same
    amount, so that samples with a small gradient dominate it.
    """
    return damped_sum(lin, lin.gram_factor, right_side(lin, "ef"), damping)
