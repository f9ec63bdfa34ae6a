"""Sampled Fisher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.factor import GramFactor, factorize
from evalkit.linearization import Linearization
from evalkit.updates.registry import method


@dataclass(frozen=True)
class _Sample:
    """Sampled logit gradients (K, N, ..., C), their factorised Gram matrix, and Gs g (K N,)."""

    logit_gradients: Tensor
    factor: GramFactor
    slopes: Tensor


@method("sf")
def sf(lin: Linearization, damping: float, seed: int = 0, labels_per_sample: int = 1) -> Tensor:
    """Sampled Fisher: (Gs^T Gs / K + lambda I)^-1 g with sampled labels (paper, eq. 47-49).

    Gs (K N, P) holds gradients for K labels per sample drawn from p(y | z). By the Woodbury
    identity the direction is (g - Gs^T a) / lambda with a = (Gs Gs^T + K lambda I)^-1 Gs g. The
    factor 1 / lambda is left out: d = g - Gs^T a, so that a near-zero damping loses nothing.
    """
    sample = lin.shared(
        ("sf", seed, labels_per_sample), lambda: _draw(lin, seed, labels_per_sample)
    )
    a = sample.factor.solve(sample.slopes, labels_per_sample * damping)
    shape = (labels_per_sample, -1) + (1,) * (lin.logits.dim() - 1)
    removed = (a.view(shape) * sample.logit_gradients).sum(0)
    return lin.vjp(lin.logit_gradients - removed)


def sampled_logit_gradients(lin: Linearization, seed: int, labels_per_sample: int) -> Tensor:
    """Return the logit gradients for labels drawn from the model: (K, N, ..., C) float64.

    Args:
        lin: the model and batch.
        seed: of the generator that draws the labels.
        labels_per_sample: K.
    """
    generator = torch.Generator().manual_seed(seed)
    likelihood = lin.likelihood
    return torch.stack(
        [
            likelihood.logit_gradients(
                lin.logits, likelihood.sample_targets(lin.logits, lin.targets, generator)
            )
            for _ in range(labels_per_sample)
        ]
    )


def _draw(lin: Linearization, seed: int, labels_per_sample: int) -> _Sample:
    if labels_per_sample < 1:
        raise EvalkitError(
            f"expected labels_per_sample of at least 1 for method 'sf', found {labels_per_sample}; "
            "draw one label or more"
        )
    r = sampled_logit_gradients(lin, seed, labels_per_sample)
    slopes = torch.cat([lin.sample_dots(draw, lin.gradient_jvp) for draw in r])
    return _Sample(r, factorize(lin.gram_of(r)), slopes)
