"""What is measured on one batch besides gamma."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from evalkit.linearization import Linearization


def imbalance(norms: Tensor) -> float:
    """Return max_n |G_n| / min_n |G_n|, the gradient-norm imbalance of a batch (paper, sec. 4).

    1 is balanced, larger is more imbalanced; inf where a sample has no gradient at all.

    Args:
        norms: (N,), of per-sample gradients or of logit gradients.
    """
    smallest, largest = float(norms.min()), float(norms.max())
    return largest / smallest if smallest > 0 else math.inf


def efficiency(gamma: float, gamma_floor: float) -> float:
    """Return gamma_floor / gamma, in [0, 1]: 1 is as good as any direction can be.

    A direction that does not descend at all (gamma = inf) has efficiency 0.
    """
    return gamma_floor / gamma if gamma > 0 and gamma_floor < math.inf else math.nan


@dataclass(frozen=True)
class BatchMetrics:
    """One batch at one checkpoint, whatever the method.

    Attributes:
        num_samples: N.
        loss: mean over the samples of the loss l_n (a sum over the sample's label positions).
        imbalance: of the per-sample gradients.
        logit_imbalance: of the logit gradients.
        target_probability: p(y_n | z_n), mean over samples; NaN for a density.
        gamma_floor: the bound below which no gamma can be.
        gram_rank: number of linearly independent per-sample gradients.
    """

    num_samples: int
    loss: float
    imbalance: float
    logit_imbalance: float
    target_probability: float
    gamma_floor: float
    gram_rank: int


def batch_metrics(lin: Linearization) -> BatchMetrics:
    """Measure one batch."""
    return BatchMetrics(
        num_samples=lin.num_samples,
        loss=float(lin.losses.mean()),
        imbalance=imbalance(lin.gradient_norms),
        logit_imbalance=imbalance(lin.logit_gradient_norms),
        target_probability=float(
            lin.likelihood.target_probabilities(lin.logits, lin.targets).mean()
        ),
        gamma_floor=lin.gamma_floor,
        gram_rank=lin.gram_factor.rank,
    )
