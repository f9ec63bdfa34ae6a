"""What is measured on one batch besides gamma."""

from __future__ import annotations

import math
from dataclasses import asdict

from torch import Tensor

from evalkit.linearization import Linearization
from evalkit.storage.rows import Batch


def imbalance(norms: Tensor) -> float:
    """Return max_n |G_n| / min_n |G_n|, the gradient-norm imbalance of a batch (paper, sec. 4).

    1 is balanced, larger is more imbalanced; inf where a sample has no gradient at all, NaN where
    one is no number.

    Args:
        norms: (N,), of per-sample gradients or of logit gradients.
    """
    smallest, largest = float(norms.min()), float(norms.max())
    return math.inf if smallest == 0 else largest / smallest


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
        micro_batch_size=lin.batches.at_once,
    )


_MAY_BE_INFINITE = ("imbalance", "logit_imbalance")
_MAY_BE_NOTHING = ("target_probability",)


def undefined_metrics(batch: Batch) -> str:
    """Return which measures of a batch are no finite numbers although all must be, with values.

    An imbalance is infinite where a sample has no gradient, and a density has no probability of its
    targets.

    Args:
        batch: as measured.
    """
    values = {name: value for name, value in asdict(batch).items() if isinstance(value, float)}
    return ", ".join(
        f"{name.replace('_', ' ')} {value:g}"
        for name, value in values.items()
        if not (
            math.isfinite(value)
            or (name in _MAY_BE_INFINITE and value == math.inf)
            or (name in _MAY_BE_NOTHING and math.isnan(value))
        )
    )
