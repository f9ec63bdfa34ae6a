"""Unit-variance Gaussian: least squares."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from evalkit.likelihoods.base import Likelihood, match_real_targets, sum_positions


class Gaussian(Likelihood):
    """Least squares: l = |z - y|^2 / 2, r = z - y, S = I.

    The loss leaves out the constant of the density. Every target counts: -100 is a value here.
    """

    name: ClassVar[str] = "gaussian"
    ignores_labels: ClassVar[bool] = False

    def check(self, logits: Tensor, targets: Tensor) -> Tensor:
        return match_real_targets(logits, targets)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return sum_positions((logits.double() - targets).square()) / 2

    def logit_gradients(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.double() - targets

    def fisher_product(self, logits: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        return vectors.double()

    def fisher_quadratic(self, logits: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        return sum_positions(vectors.double().square())

    def fisher_trace(self, logits: Tensor, targets: Tensor) -> Tensor:
        return sum_positions(torch.ones_like(logits, dtype=torch.float64))

    def fisher_root(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.diag_embed(torch.ones_like(logits, dtype=torch.float64))

    def solve_root(self, logits: Tensor, targets: Tensor, values: Tensor) -> Tensor:
        return values.double()

    def sample_targets(self, logits: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(
            logits.shape, generator=generator, dtype=torch.float64, device=generator.device
        )
        return logits.double() + noise.to(logits.device)

    def floor_terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return |z - y|^2: (N,)."""
        return sum_positions((logits.double() - targets).square())

    def target_probabilities(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.full_like(sum_positions(logits.double()), torch.nan)
