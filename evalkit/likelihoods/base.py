"""The interface of a likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from evalkit.counts import counted
from evalkit.errors import EvalkitError

IGNORED_LABEL = -100
"""A label position with this target counts for nothing, as in ``torch.nn.functional``."""


class Likelihood(ABC):
    """p(y | z) for logits z: pure functions of (logits, targets), one sample per row of axis 0.

    Shapes: logits are (N, ..., C). A sample's loss is the *sum* over all of its label positions.
    Everything is computed and returned in float64, whatever the dtype of the logits. ``losses`` is
    differentiable in the logits.
    """

    name: ClassVar[str]
    ignores_labels: ClassVar[bool] = True
    """Whether the target -100 means that a position has no label."""

    @abstractmethod
    def check(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the targets in the form that the other functions take.

        Raises:
            EvalkitError: shape, dtype or values do not fit, or a sample has no label.
        """

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return l_n = -log p(y_n | z_n), summed over positions: (N,)."""

    @abstractmethod
    def logit_gradients(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return r_n = d l_n / d z_n, accurate for saturated samples too: like logits."""

    @abstractmethod
    def fisher_product(self, logits: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        """Return S_n u_n for the output Fisher S_n = d2 l_n / d z_n2: like logits."""

    @abstractmethod
    def fisher_quadratic(self, logits: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        """Return u_n^T S_n u_n, never negative: (N,)."""

    @abstractmethod
    def fisher_trace(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return tr S_n, without a matrix: (N,)."""

    @abstractmethod
    def fisher_root(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return B_n with S_n = B_n B_n^T, a block for each position: (N, ..., C, C).

        A column of zeros stands for a direction that S_n does not see.
        """

    @abstractmethod
    def solve_root(self, logits: Tensor, targets: Tensor, values: Tensor) -> Tensor:
        """Return rho_n with B_n rho_n = values_n for values in the range of S_n: like logits.

        For r the sum of squares of rho_n is the floor term r_n^T S_n^+ r_n.
        """

    @abstractmethod
    def sample_targets(self, logits: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Draw targets from p(y | z); positions without a label stay without: like targets.

        A number is drawn for each position with a label, so that padding changes no draw.
        The same generator state and nearby logits give mostly the same labels, so that
        comparisons between checkpoints are paired.
        """

    @abstractmethod
    def floor_terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return r_n^T S_n^+ r_n in closed form: (N,). Their sum to the power -1/2 bounds gamma."""

    def log_floor_terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the logarithms of the floor terms, where these overflow too: (N,)."""
        return self.floor_terms(logits, targets).log()

    @abstractmethod
    def target_probabilities(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return p(y | z) averaged over the positions of a sample: (N,), NaN for a density."""


def sum_positions(values: Tensor) -> Tensor:
    """Sum everything but the sample axis: (N, ...) -> (N,)."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values


def check_labels(labelled: Tensor) -> None:
    """Refuse a batch in which a sample has no label.

    Args:
        labelled: (N, ...) booleans, true where a target counts.

    Raises:
        EvalkitError: some samples have none.
    """
    empty = (~labelled.flatten(1).any(1) if labelled.dim() > 1 else ~labelled).nonzero().flatten()
    if len(empty):
        raise EvalkitError(
            f"expected a label in every sample, found only {IGNORED_LABEL} in sample "
            f"{int(empty[0])} ({len(empty)} of {counted(len(labelled), 'sample')}); drop such "
            "samples"
        )


def match_real_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Return real-valued targets as float64 in the shape of the logits.

    Targets of shape (N,) are accepted for logits (N, 1).

    Raises:
        EvalkitError: the shapes do not match, or a target is NaN or infinite.
    """
    if targets.shape != logits.shape and (*targets.shape, 1) != tuple(logits.shape):
        raise EvalkitError(
            f"expected targets of the shape of the logits, {tuple(logits.shape)}, found "
            f"{tuple(targets.shape)}; reshape the targets"
        )
    values = targets.to(device=logits.device, dtype=torch.float64).reshape(logits.shape)
    if not values.isfinite().all():
        raise EvalkitError("expected finite targets, found NaN or infinity; clean the targets")
    return values
