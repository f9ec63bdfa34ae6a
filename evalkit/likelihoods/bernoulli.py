"""Sigmoid with binary cross-entropy."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.likelihoods.base import (
    IGNORED_LABEL,
    Likelihood,
    check_labels,
    match_real_targets,
    sum_positions,
)


class Bernoulli(Likelihood):
    """Sigmoid with binary cross-entropy, each output on its own: S = diag(p (1 - p)).

    Targets have the shape of the logits, values in [0, 1], -100 for an output without a label.
    Every formula is written with sigmoid(z) and sigmoid(-z), so that 1 - p keeps its digits.
    """

    name: ClassVar[str] = "bernoulli"

    def check(self, logits: Tensor, targets: Tensor) -> Tensor:
        targets = match_real_targets(logits, targets)
        labelled = targets != IGNORED_LABEL
        check_labels(labelled)
        wrong = labelled & ((targets < 0) | (targets > 1))
        if wrong.any():
            raise EvalkitError(
                f"expected targets between 0 and 1, or {IGNORED_LABEL}, for the bernoulli "
                f"likelihood, found {float(targets[wrong][0]):g}; correct the targets"
            )
        return targets

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        z, zero = logits.double(), logits.new_zeros((), dtype=torch.float64)
        losses = (1 - targets) * torch.logaddexp(z, zero) + targets * torch.logaddexp(-z, zero)
        return sum_positions(losses.where(targets != IGNORED_LABEL, 0.0))

    def logit_gradients(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return r = p - y = (1 - y) sigmoid(z) - y sigmoid(-z): like logits."""
        z = logits.double()
        r = (1 - targets) * z.sigmoid() - targets * (-z).sigmoid()
        # Near zero, where targets of a half let that cancel: p - 1/2 = (e^z - 1) / (2 (e^z + 1)).
        near = (z.expm1() * (1 - targets) + (1 - 2 * targets)) * (-z).sigmoid()
        soft = (targets > 0) & (targets < 1) & (z.abs() < 1)
        return near.where(soft, r).where(targets != IGNORED_LABEL, 0.0)

    def fisher_product(self, logits: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        z = logits.double()
        product = z.sigmoid() * (-z).sigmoid() * vectors.double()
        return product.where(targets != IGNORED_LABEL, 0.0)

    def fisher_quadratic(self, logits: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        return sum_positions(vectors.double() * self.fisher_product(logits, targets, vectors))

    def fisher_trace(self, logits: Tensor, targets: Tensor) -> Tensor:
        return sum_positions(self._root(logits, targets).square())

    def fisher_root(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return diag(sqrt(p (1 - p))): (N, ..., C, C)."""
        return torch.diag_embed(self._root(logits, targets))

    def solve_root(self, logits: Tensor, targets: Tensor, values: Tensor) -> Tensor:
        root = self._root(logits, targets)
        return (values / root).where(root > 0, 0.0)

    def _root(self, logits: Tensor, targets: Tensor) -> Tensor:
        z = logits.double()
        return (z.sigmoid() * (-z).sigmoid()).sqrt().where(targets != IGNORED_LABEL, 0.0)

    def sample_targets(self, logits: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        labelled = targets != IGNORED_LABEL
        p = logits[labelled].double().sigmoid()
        draws = torch.rand(
            p.shape, generator=generator, dtype=torch.float64, device=generator.device
        ).to(logits.device)
        return targets.masked_scatter(labelled, (draws < p).double())

    def floor_terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (p - y)^2 / (p (1 - p)) = ((1 - y) e^(z/2) - y e^(-z/2))^2, summed: (N,)."""
        z = logits.double()
        half = z / 2
        # exp may overflow where its factor is zero.
        up = torch.where(targets < 1, (1 - targets) * half.exp(), 0.0)
        down = torch.where(targets > 0, targets * (-half).exp(), 0.0)
        near = self.logit_gradients(logits, targets) / self._root(logits, targets)
        terms = (up - down).where(z.abs() >= 1, near).square()
        return sum_positions(terms.where(targets != IGNORED_LABEL, 0.0))

    def log_floor_terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the logarithm of the terms from those of (1 - y) e^(z/2) and y e^(-z/2): (N,)."""
        half, labelled = logits.double() / 2, targets != IGNORED_LABEL
        y = targets.double().where(labelled, 0.0)
        up, down = torch.log1p(-y) + half, y.log() - half
        logs = 2 * (torch.maximum(up, down) + (-torch.expm1(-(up - down).abs())).log())
        return logs.where(labelled, -math.inf).view(len(half), -1).logsumexp(1)

    def target_probabilities(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return y p + (1 - y) (1 - p), averaged over the labelled outputs: (N,)."""
        z = logits.double()
        probabilities = targets * z.sigmoid() + (1 - targets) * (-z).sigmoid()
        labelled = targets != IGNORED_LABEL
        return sum_positions(probabilities.where(labelled, 0.0)) / sum_positions(labelled.double())
