"""Fast Gauss-Newton, with the Gram matrix damped."""

from evalkit.linearization import Linearization
from evalkit.updates.registry import method
from evalkit.updates.targets import right_side
from evalkit.updates.types import CotangentUpdate
from evalkit.updates.weighted import damped_sum


@method("fgn")
def fgn(lin: Linearization, damping: float) -> CotangentUpdate:
    """Fast Gauss-Newton: d = G^T (G G^T + lambda I)^-1 f, f_n = r_n^T S_n^+ r_n (2605.06081).

    G_n G_n^T / f_n is the largest multiple of G_n G_n^T below the sample's part of F
    (Cauchy-Schwarz). With one output per sample, or two classes, it is all of it unless r_n = 0:
    undamped, the direction is then the exact natural gradient.
    """
    return damped_sum(lin, lin.gram_factor, right_side(lin, "fgn"), damping)
