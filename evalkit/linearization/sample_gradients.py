"""The gradient of a batch, and the inner products of its samples' gradients by the right route."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from evalkit.evaluation.full_precision import full_precision
from evalkit.likelihoods import Likelihood
from evalkit.linearization.gram import ROUTES, gram_matrix, side
from evalkit.linearization.kept import KeptGradients
from evalkit.linearization.loss_terms import LossTerms, Shared
from evalkit.linearization.micro_batches import MicroBatches
from evalkit.linearization.per_sample import CannotVectorizeError, PerSample
from evalkit.linearization.sample_axis import refuse_infinite_gradient
from evalkit.signs import random_signs


@dataclass(frozen=True, eq=False)
class _Routed:
    """A route, the Gram matrix that showed it to be right, and J g where that brought it."""

    route: PerSample | None
    gram: Tensor
    gradient_jvp: Tensor | None = None


@dataclass(frozen=True)
class Trusted:
    """A route that was right for the same model before, and is taken without a test.

    Attributes:
        route: one of :data:`evalkit.linearization.gram.ROUTES`.
    """

    route: PerSample | None


class SampleGradients(LossTerms):
    """The linear maps and the loss of one batch, with g = sum_n G_n and K_nm = G_n . G_m.

    G_n = J_n^T r_n are the per-sample gradients, r_n = d l_n / d z_n.
    """

    def __init__(
        self,
        batches: MicroBatches,
        likelihood: Likelihood,
        targets: Tensor,
        trusted: Trusted | None = None,
    ) -> None:
        super().__init__(batches, likelihood, targets)
        self._given = targets
        self._kept = KeptGradients(batches)
        self._trusted = trusted

    @Shared
    def gradient(self) -> Tensor:
        """g = sum_n J_n^T r_n, the gradient of the summed loss: (P,)."""
        return self.vjp(self.logit_gradients)

    @cached_property
    def gradient_norm(self) -> float:
        """|g|."""
        return self.pulled_norm(self.logit_gradients, self.gradient_jvp)

    @property
    def batches(self) -> MicroBatches:
        """The forward passes and what was recorded of them, from which work is foreseen."""
        return self._batches

    @Shared
    def gradient_jvp(self) -> Tensor:
        """J g: like logits, float64. r_n . (J g)_n = G_n . g is the slope of each loss along g.

        Where the Gram matrix has been taken before, it needs no backward.
        """
        routed: _Routed | None = vars(self).get("_routed")
        if routed is not None and routed.gradient_jvp is not None:
            return routed.gradient_jvp
        return self.kernel_product(self.logit_gradients)

    @cached_property
    @full_precision()
    def _routed(self) -> _Routed:
        """The fastest route whose Gram matrix has the row sums that it must have.

        The fast routes take something for granted about the model; where that fails, the next
        slower one is taken.
        """
        cotangents = self.logit_gradients.unsqueeze(0)
        if self._trusted is not None:
            return _Routed(self._trusted.route, self._inner(cotangents, self._trusted.route))
        for route in ROUTES[:-1]:
            if route is not None and not self._batches.runs_alone():
                continue
            try:
                gram = self._inner(cotangents, route)
            except CannotVectorizeError:
                continue
            known = self._kept.product([(self.logit_gradients, torch.ones_like(self.losses))])
            # Whether rules and vectorisation may be used shows in no model's code: their result has
            # to have the sums that products by the graph give.
            if self._row_sums_agree(gram, self.gradient_jvp if known is None else known):
                return _Routed(route, gram, known)
            refuse_infinite_gradient(self.gradient, self.parameters)  # agrees with nothing
            self._forget()
        warnings.warn(
            "samples influence each other in this forward, or its sample axis is not axis 0 "
            "throughout: per-sample gradients are formed by one backward each, which is slow",
            stacklevel=2,
        )
        return _Routed(ROUTES[-1], self._inner(cotangents, ROUTES[-1]))

    def _inner(self, cotangents: Tensor, route: PerSample | None) -> Tensor:
        """Return the inner products of J_n^T c_kn by a route, and keep what they are made of."""
        own = side(self._batches, cotangents, route)
        gram = gram_matrix(self._batches, cotangents, route, kept=own)
        self._kept.keep(cotangents, own)
        return gram

    def _forget(self) -> None:
        """Let go of output gradients that are kept."""
        self._kept.forget()

    @property
    def route(self) -> PerSample | None:
        """How per-sample gradients are had: one of :data:`evalkit.linearization.gram.ROUTES`."""
        return self._routed.route

    @Shared
    def gram(self) -> Tensor:
        """K_nm = G_n . G_m for the per-sample gradients G_n = J_n^T r_n: (N, N) float64."""
        return self._routed.gram

    @property
    def unit(self) -> float:
        """The unit roundoff of the evaluation: half of the distance from 1 to the next number."""
        return torch.finfo(self.logits.dtype).eps / 2

    def _row_sums_agree(self, gram: Tensor, gradient_jvp: Tensor) -> bool:
        """Return whether (K w)_n = r_n . J J^T (w r) for one w, as holds for the true K alone.

        With w = 1 the right side is r . (J g), which scoring needs anyway. Where g nearly vanishes
        that says nothing; then random signs w decide, for one more product.
        """
        norms = gram.diagonal().clamp_min(0).sqrt()
        whole = float(norms.square().sum().sqrt())
        # Entries of K are exact relative to |G_n| |G_m|. What a wrong route gives is far from that.
        tolerance = torch.finfo(self.logits.dtype).eps ** 0.6 * norms * whole
        if self.pulled_norm(self.logit_gradients, gradient_jvp) > 0.1 * whole:
            slopes = self.sample_dots(self.logit_gradients, gradient_jvp)
            return bool(((gram.sum(1) - slopes).abs() <= tolerance).all())
        generator = torch.Generator().manual_seed(0)
        signs = random_signs((self.num_samples,), generator, gram)
        product = self.kernel_product(self.weighted_logit_gradients(signs))
        slopes = self.sample_dots(self.logit_gradients, product)
        return bool(((gram @ signs - slopes).abs() <= tolerance).all())
