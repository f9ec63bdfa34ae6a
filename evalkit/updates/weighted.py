"""What EF and iEF share: sums of per-sample gradients."""

from torch import Tensor

from evalkit.linearization import Linearization
from evalkit.updates.registry import Term, Update


def weighted_sum(lin: Linearization, weights: Tensor) -> Update:
    """Return d = G^T alpha = sum_n J_n^T (alpha_n r_n), as an update with d^T g = alpha^T K 1.

    Args:
        lin: the model and batch.
        weights: alpha, (N,).
    """
    term = Term(lin.logit_gradients, weights)
    slope = float(weights @ lin.gram.sum(1))
    return Update(cotangents=lin.weighted_logit_gradients(weights), terms=(term,), slope=slope)
