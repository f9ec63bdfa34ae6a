"""The step that would bring every loss to zero, to first order."""

from evalkit.linearization import Linearization
from evalkit.updates.registry import method
from evalkit.updates.targets import right_side
from evalkit.updates.types import CotangentUpdate
from evalkit.updates.weighted import damped_sum


@method("polyak")
def polyak(lin: Linearization, damping: float) -> CotangentUpdate:
    """Polyak's step for every sample at once: d = G^T (G G^T + lambda I)^-1 l, l_n the losses.

    Undamped, d is the shortest with G_n . d = l_n for all n, so that a step -d lowers every loss to
    zero to first order, as Polyak's step size does for a single one.
    """
    return damped_sum(lin, lin.gram_factor, right_side(lin, "polyak"), damping)
