"""Sampled Fisher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.factor import GramFactor, factorize
from evalkit.linearization import Linearization
from evalkit.updates.registry import Term, Update, method


@dataclass(frozen=True)
class _Sample:
    """Sampled logit gradients, what they say of g, and their factorised Gram matrix.

    Attributes:
        logit_gradients: rs of each draw, K times (N, ..., C).
        factor: of Gs Gs^T, (K N, K N).
        slopes: Gs g, (K N,).
        weights: h with g = Gs^T h where g is known to lie in the span of Gs, otherwise None.
    """

    logit_gradients: tuple[Tensor, ...]
    factor: GramFactor
    slopes: Tensor
    weights: Tensor | None


@method("sf")
def sf(lin: Linearization, damping: float, seed: int = 0, labels_per_sample: int = 1) -> Update:
    """Sampled Fisher: (Gs^T Gs / K + lambda I)^-1 g with sampled labels (paper, eq. 47-49).

    Gs (K N, P) holds gradients for K labels per sample drawn from p(y | z). By the Woodbury
    identity the direction is (g - Gs^T a) / lambda with a = (Gs Gs^T + K lambda I)^-1 Gs g. The
    factor 1 / lambda is left out: d = g - Gs^T a, so that a near-zero damping loses nothing.

    Where g = Gs^T h lies in the span of Gs (scalar outputs, or no more parameters than sampled
    gradients), that difference would cancel, and d = K lambda Gs^T (Gs Gs^T + K lambda I)^-1 h is
    taken instead; for lambda = 0 without the factor lambda.
    """
    sample = lin.shared(
        ("sf", seed, labels_per_sample), lambda: _draw(lin, seed, labels_per_sample)
    )
    ridge = labels_per_sample * damping
    if sample.weights is None:
        a = sample.factor.solve(sample.slopes, ridge)
        return _combined(sample, -a, (Term(lin.logit_gradients, torch.ones_like(lin.losses)),))
    scale = ridge if damping else float(labels_per_sample)
    return _combined(sample, scale * sample.factor.solve(sample.weights, ridge))


def _combined(sample: _Sample, weights: Tensor, terms: tuple[Term, ...] = ()) -> Update:
    """Return Gs^T weights, and more terms, as an update."""
    draws = len(sample.logit_gradients)
    parts = zip(sample.logit_gradients, weights.view(draws, -1), strict=True)
    terms = (*terms, *(Term(rs, part) for rs, part in parts))
    shape = (-1,) + (1,) * (terms[0].cotangents.dim() - 1)
    cotangents = [term.weights.view(shape) * term.cotangents for term in terms]
    return Update(cotangents=torch.stack(cotangents).sum(0), terms=terms)


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
    factor = factorize(lin.gram_of(r))
    weights = _combination(lin, r)
    if weights is None and factor.rank >= lin.num_params:
        weights = factor.solve(slopes, 0.0)
    return _Sample(tuple(r), factor, slopes, weights)


def _combination(lin: Linearization, r: Tensor) -> Tensor | None:
    """Return h with r_n = sum_k h_kn rs_kn for every sample, (K N,), or None if there is none."""
    sampled = r.flatten(2).movedim(0, 1)  # (N, K, outputs)
    true = lin.logit_gradients.flatten(1).unsqueeze(2)  # (N, outputs, 1)
    products = sampled @ sampled.transpose(1, 2)
    h = torch.linalg.pinv(products, hermitian=True) @ (sampled @ true)  # (N, K, 1)
    rest = (true - sampled.transpose(1, 2) @ h).flatten(1).norm(dim=1)
    if bool((rest > 1e-12 * lin.logit_gradient_norms).any()):
        return None
    return h.squeeze(2).T.flatten()
