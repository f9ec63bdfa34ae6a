"""What EF and iEF share: sums of per-sample gradients."""

from torch import Tensor

from evalkit.linearization import Linearization
from evalkit.updates.registry import Term, Update


def weighted_sum(lin: Linearization, weights: Tensor) -> Update:
    """Return G^T alpha = sum_n J_n^T (alpha_n r_n), as an update.

    Args:
        lin: the model and batch.
        weights: alpha, (N,).
    """
    term = Term(lin.logit_gradients, weights)
    return Update(cotangents=lin.weighted_logit_gradients(weights), terms=(term,))
