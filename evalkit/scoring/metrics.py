"""What is measured on one batch besides gamma."""

from __future__ import annotations

import math

from torch import Tensor

from evalkit.linearization import Linearization
from evalkit.storage.rows import Batch


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


def batch_metrics(lin: Linearization, data_sha256: str) -> Batch:
    """Measure one batch.

    Args:
        lin: the model and batch.
        data_sha256: hash of the batch.
    """
    return Batch(
        num_samples=lin.num_samples,
        loss=float(lin.losses.mean()),
        imbalance=imbalance(lin.gradient_norms),
        logit_imbalance=imbalance(lin.logit_gradient_norms),
        target_probability=float(
            lin.likelihood.target_probabilities(lin.logits, lin.targets).mean()
        ),
        gamma_floor=lin.gamma_floor,
        gram_rank=lin.gram_factor.rank,
        data_sha256=data_sha256,
    )
