"""Fast Gauss-Newton, with the Fisher matrix damped."""

from evalkit.linearization import Linearization
from evalkit.rounding import check_range
from evalkit.updates.registry import method
from evalkit.updates.types import CotangentUpdate
from evalkit.updates.weighted import tikhonov_sum


@method("fgn-tikhonov")
def fgn_tikhonov(lin: Linearization, damping: float) -> CotangentUpdate:
    """Tikhonov form of FGN: d = (F_f + lambda I)^-1 g, F_f = G^T diag(f)^-1 G <= F.

    With one output per sample, or two classes, F_f = F where no r_n is 0: at every damping the
    direction is then the exact natural gradient. Undamped it is ``fgn``.
    """
    check_range(lin, lin.floor_terms, "f of method 'fgn-tikhonov'")
    return tikhonov_sum(lin, "fgn-tikhonov", lin.floor_terms.sqrt(), damping)
