"""The directions of EF and its kin as weights on the samples, in the convention of the mean loss.

Published learning rates and dampings are for the *mean* loss, whose terms are l_n / N: per-sample
gradients G_n / N, their Gram matrix K / N^2, and targets t / N^k, of degree k in the loss
(:mod:`evalkit.updates.targets`). So

    d = (G / N)^T (K / N^2 + lambda I)^-1 t / N^k = G^T w,  w = N^(1 - k) (K + N^2 lambda I)^-1 t:

lambda_sum = N^2 lambda, and eta_sum = N eta for EF, eta / N for iEF, eta for FGN and Polyak.
"""

from __future__ import annotations

from torch import Tensor

from evalkit.factor import CONSISTENT, GramFactor
from evalkit.linearization import Linearization
from evalkit.optim.recorded import StepError, step_failures
from evalkit.optim.whole_batch import WholeBatch
from evalkit.updates.targets import TARGETS, right_side


def sample_weights(
    lin: Linearization, method: str, damping: float, whole: WholeBatch | None = None
) -> Tensor:
    """Return w with d = sum_n w_n G_n, the direction for the mean loss: (N,) float64.

    Args:
        lin: the model and batch.
        method: a name of :data:`evalkit.updates.targets.TARGETS`.
        damping: lambda >= 0, for the mean loss.
        whole: the samples of all processes, of whose mean loss it is; None for those of this one.

    Raises:
        StepError: there is no damping, and no direction brings every sample to its target; or a
            number leaves the range of float64.
    """
    target = TARGETS[method]
    with step_failures():
        right = right_side(lin, method)
        factor = lin.gram_factor if whole is None else whole.factor(0)
    right = right if whole is None else whole.gathered(right)
    count = len(right)
    if damping == 0:
        _check_solvable(factor, right)
    weights = float(count) ** (1 - target.degree) * factor.solve(right, count**2 * damping)
    return weights if whole is None else weights[whole.here]


def _check_solvable(factor: GramFactor, right: Tensor) -> None:
    left = right - factor.image(right, 0.0)
    if float(left.norm()) > CONSISTENT * float(right.norm()):
        raise StepError(
            "expected per-sample gradients that are linearly independent where damping is 0, found "
            f"rank {factor.rank} for {len(right)} samples, so that the system is singular; raise "
            "the damping, or take smaller batches"
        )
