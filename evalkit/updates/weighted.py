"""What EF and iEF share: sums of per-sample gradients."""

from torch import Tensor

from evalkit.linearization import Linearization


def weighted_sum(lin: Linearization, weights: Tensor) -> Tensor:
    """Return G^T alpha = sum_n J_n^T (alpha_n r_n), one VJP: (P,).

    Args:
        lin: the model and batch.
        weights: alpha, (N,).
    """
    shape = (-1,) + (1,) * (lin.logits.dim() - 1)
    return lin.vjp(weights.view(shape) * lin.logit_gradients)
