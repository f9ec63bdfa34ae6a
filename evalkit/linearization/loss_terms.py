"""What follows from the loss of a batch at its logits, and what all methods share."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.likelihoods import Likelihood
from evalkit.linearization.linear_maps import LinearMaps
from evalkit.linearization.micro_batches import MicroBatches
from evalkit.reductions import power_of_two

T = TypeVar("T")


class Shared(cached_property[Tensor]):
    """A tensor that all methods see, computed once; its version then tells whether it changed."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        value = super().__get__(instance, owner)
        if instance is not None:
            # Torch counts writes: another count later tells that a method changed it.
            instance.versions[self.attrname] = value._version
        return value


class LossTerms(LinearMaps):
    """The linear maps of one batch, with logit gradients, losses and the floor of gamma.

    Attributes:
        versions: the versions of the tensors that all methods see, by name, as they were computed.
    """

    def __init__(self, batches: MicroBatches, likelihood: Likelihood, targets: Tensor) -> None:
        super().__init__(batches, likelihood, targets)
        self.versions: dict[str, int] = {}
        self._shared: dict[Hashable, Any] = {}

    def changed(self) -> str | None:
        """Return the name of a tensor that was changed in place since it was computed, if any."""
        here = vars(self)
        return next(
            (n for n, version in self.versions.items() if here[n]._version != version), None
        )

    def shared(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return ``compute()``, done once per key: how a method shares work between dampings."""
        # All methods have one dictionary: a key begins with what only its own method says.
        if key not in self._shared:
            self._shared[key] = compute()
        value: T = self._shared[key]
        return value

    @Shared
    def logit_gradients(self) -> Tensor:
        """r_n = d l_n / d z_n: like logits, float64."""
        return self.likelihood.logit_gradients(self.logits, self.targets)

    def sampled_logit_gradients(self, seed: int = 0, labels_per_sample: int = 1) -> Tensor:
        """Return the logit gradients for labels drawn from the model: (K, N, ..., C) float64.

        Every method that draws labels takes them from here, so that those with one seed approximate
        the same matrix, sum_kn J^T c_kn c_kn^T J / K.

        Args:
            seed: the seed of the generator that draws the labels.
            labels_per_sample: K.

        Raises:
            EvalkitError: no label is to be drawn.
        """
        if labels_per_sample < 1:
            raise EvalkitError(
                f"expected labels_per_sample of at least 1, found {labels_per_sample}; draw one "
                "label or more"
            )
        generator, meaning = torch.Generator().manual_seed(seed), self.likelihood
        drawn = (
            meaning.sample_targets(self.logits, self.targets, generator)
            for _ in range(labels_per_sample)
        )
        return torch.stack([meaning.logit_gradients(self.logits, labels) for labels in drawn])

    @Shared
    def losses(self) -> Tensor:
        """l_n, summed over a sample's positions: (N,) float64."""
        return self.likelihood.losses(self.logits, self.targets)

    def weighted_logit_gradients(self, weights: Tensor) -> Tensor:
        """Return alpha_n r_n, which J^T maps to G^T alpha: (N,) -> like logits."""
        return weights.view(-1, *([1] * (self.logits.dim() - 1))) * self.logit_gradients

    @Shared
    def logit_gradient_norms(self) -> Tensor:
        """|r_n|, over all positions of a sample: (N,) float64."""
        sizes = power_of_two(self.logit_gradients.flatten(1), 1)  # squares would underflow
        r = self.logit_gradients / sizes.view(-1, *[1] * (self.logits.dim() - 1))
        return self.sample_dots(r, r).sqrt() * sizes

    @Shared
    def floor_terms(self) -> Tensor:
        """f_n = r_n^T S_n^+ r_n, what a sample adds to the floor: (N,) float64."""
        return self.likelihood.floor_terms(self.logits, self.targets)

    @cached_property
    def gamma_floor(self) -> float:
        """(sum_n f_n)^(-1/2), which no direction's gamma is below.

        By Cauchy-Schwarz, |d^T g| = |sum_n r_n^T J_n d| <= sqrt(sum r^T S^+ r) sqrt(d^T F d), with
        equality for the exact natural gradient when the stacked J has full row rank.
        """
        total = self.floor_terms.sum()
        # e^l overflows from a loss of 710 on; what is fitted as far loses digits, then vanishes.
        if not sys.float_info.min <= float(total) < math.inf:
            logs = self.likelihood.log_floor_terms(self.logits, self.targets)
            return float((-logs.logsumexp(0) / 2).exp())
        return float(total**-0.5)
