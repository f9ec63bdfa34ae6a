"""One model, one batch, linearised at the model's parameters, with the graph kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from evalkit.errors import EvalkitError
from evalkit.evaluation.full_precision import full_precision
from evalkit.evaluation.given import Inputs
from evalkit.factor import GramFactor, factorize, factorize_rows
from evalkit.layers.rows import GradientRows
from evalkit.likelihoods import Likelihood
from evalkit.linearization.factors import (
    FormedRows,
    LayerFactors,
    layer_factors,
    sample_gradients,
)
from evalkit.linearization.gram import (
    ROUTES,
    gram_blocks,
    gram_matrix,
    row_norms,
    scaled_cotangents,
    side,
)
from evalkit.linearization.kept import KeptGradients
from evalkit.linearization.loss_terms import LossTerms, Shared
from evalkit.linearization.micro_batches import MicroBatches
from evalkit.linearization.per_sample import (
    CannotVectorizeError,
    PerSample,
    defining_gradients,
)
from evalkit.signs import random_signs

MOST_ROW_NUMBERS = 1 << 22
"""Numbers in per-sample gradients that a float64 evaluation forms to factorise them: 32 MiB."""


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


class Linearization(LossTerms):
    """One model on one batch of N samples with P trainable parameters, linearised.

    The linear maps of :class:`evalkit.linearization.linear_maps.LinearMaps`, what follows from the
    loss at the logits (:class:`evalkit.linearization.loss_terms.LossTerms`), and what both make:
    with r_n = d l_n / d z_n, the gradient g = sum_n J_n^T r_n, per-sample gradients
    G_n = J_n^T r_n, and their Gram matrix K_nm = G_n . G_m.

    Theta is flattened row-major in the order of ``model.named_parameters()``. Vectors are (P,) in
    the model's dtype; logit-shaped values are like ``logits``. Sums over the batch are float64, and
    sums, never means.
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
            own = side(self._batches, cotangents, self._trusted.route)
            gram = gram_matrix(self._batches, cotangents, self._trusted.route, kept=own)
            self._kept.keep(cotangents, own)
            return _Routed(self._trusted.route, gram)
        for route in ROUTES[:-1]:
            if route is not None and not self._batches.runs_alone():
                continue
            try:
                own = side(self._batches, cotangents, route)
                gram = gram_matrix(self._batches, cotangents, route, kept=own)
            except CannotVectorizeError:
                continue
            self._kept.keep(cotangents, own)
            known = self._kept.product([(self.logit_gradients, torch.ones_like(self.losses))])
            # Whether rules and vectorisation may be used shows in no model's code: their result has
            # to have the sums that products by the graph give.
            if self._row_sums_agree(gram, self.gradient_jvp if known is None else known):
                return _Routed(route, gram, known)
            self._kept = KeptGradients(self._batches)
        warnings.warn(
            "samples influence each other in this forward, or its sample axis is not axis 0 "
            "throughout: per-sample gradients are formed by one backward each, which is slow",
            stacklevel=2,
        )
        return _Routed(ROUTES[-1], gram_matrix(self._batches, cotangents, ROUTES[-1]))

    @property
    def route(self) -> PerSample | None:
        """How per-sample gradients are had: one of :data:`evalkit.linearization.gram.ROUTES`."""
        return self._routed.route

    @Shared
    def gram(self) -> Tensor:
        """K_nm = G_n . G_m for the per-sample gradients G_n = J_n^T r_n: (N, N) float64."""
        return self._routed.gram

    @cached_property
    def gram_factor(self) -> GramFactor:
        """The factorised Gram matrix, shared by every method and damping."""
        return self._factor(self.logit_gradients.unsqueeze(0), lambda: self.gram)

    def factor_of(self, cotangents: Tensor) -> GramFactor:
        """Return the factorised matrix of the inner products of J_n^T c_kn.

        Args:
            cotangents: c, (K, N, ..., C) float64.
        """
        return self._factor(cotangents, lambda: self.gram_of(cotangents))

    def _factor(self, cotangents: Tensor, gram: Callable[[], Tensor]) -> GramFactor:
        """Return the factorised Gram matrix of J_n^T c_kn.

        Small float64 evaluations form the rows themselves, which keep twice the digits.
        """
        size = cotangents.shape[:2].numel() * self.num_params
        if self.logits.dtype == torch.float64 and size <= MOST_ROW_NUMBERS:
            return factorize_rows(self.sample_gradients(cotangents))
        return factorize(gram(), unit=self.unit, columns=self.num_params)

    @full_precision()
    def sample_gradients(self, cotangents: Tensor) -> Tensor:
        """Return J_n^T c_kn, formed: (K N, P) float64; row k N + n belongs to cotangent k.

        Args:
            cotangents: c, (K, N, ..., C) float64.
        """
        rows = sample_gradients(self._batches, cotangents, self.route)
        # One sample at a time, a model may do something else than in the batch.
        along = torch.cat([self.sample_dots(draw, self.gradient_jvp) for draw in cotangents])
        wrong = (rows @ self.gradient.double() - along).abs()
        if (wrong > self.unit**0.6 * rows.norm(dim=1) * self.gradient_norm).any():
            rows = sample_gradients(self._batches, cotangents, defining_gradients)
        return rows

    @property
    def unit(self) -> float:
        """The unit roundoff of the evaluation: half of the distance from 1 to the next number."""
        return torch.finfo(self.logits.dtype).eps / 2

    def in_float64(self) -> Linearization:
        """Return the same model and batch linearised in float64: about three times the work."""
        return Linearization(self._batches.in_float64(), self.likelihood, self._given)

    def module_and_batch(self) -> tuple[nn.Module, Inputs, Tensor]:
        """Return model, inputs and targets for the code of another library.

        The module is a copy, with the parameters in their order, and in the precision of this
        evaluation as inputs and real targets are: the same rows are found again in float64.
        """
        targets = self.targets
        if targets.is_floating_point():
            targets = targets.to(self.logits)
        return *self._batches.module_and_inputs(), targets

    @full_precision()
    def gram_of(self, cotangents: Tensor) -> Tensor:
        """Return the inner products of J_n^T c_kn for K cotangents per sample.

        Args:
            cotangents: c, (K, N, ..., C) float64.

        Returns:
            (K N, K N) float64; row k N + n belongs to cotangent k of sample n.
        """
        own = side(self._batches, cotangents, self.route)
        self._kept.keep(cotangents, own)
        return gram_matrix(self._batches, cotangents, self.route, kept=own)

    @full_precision()
    def gradient_rows(self, cotangents: Tensor) -> tuple[dict[str, GradientRows], Tensor]:
        """Return J_n^T c_kn parameter by parameter, to be multiplied with those of other samples.

        Args:
            cotangents: c, (K, N, ..., C) float64.

        Returns:
            The rows of each parameter, or of a weight with its bias, and scales that they are to be
            multiplied by, (K, N) float64.

        Raises:
            EvalkitError: the batch is evaluated in micro-batches.
        """
        own = side(self._batches, cotangents, self.route)
        if own is None:
            raise EvalkitError(
                "expected a batch that is linearised as a whole, found micro-batches; leave out "
                "`micro_batch_size`"
            )
        self._kept.keep(cotangents, own)
        scales = scaled_cotangents(cotangents, self.logits.dtype)[1]
        return own.all_rows(), scales.view(cotangents.shape[:2])

    @full_precision()
    def weighted_product(self, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return J d for d = sum_n J_n^T w_n c_n over terms (c, w): like logits, float64.

        Where inner products of all J_n^T c_n have been asked for, that is less than a
        :meth:`kernel_product`: their output gradients are at hand.

        Args:
            terms: pairs of cotangents c, like logits in float64, and weights w, (N,).
        """
        if (known := self._kept.product(terms)) is not None:
            return known
        return self.kernel_product(_summed(terms))

    @full_precision()
    def weighted_gradients(self, terms: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return d = sum_n J_n^T w_n c_n over terms (c, w), by parameter's name, in its shape.

        Where inner products of all J_n^T c_n have been asked for, no backward is needed: their
        output gradients are at hand. Parameters that the logits do not depend on may be left out.

        Args:
            terms: pairs of cotangents c, like logits in float64, and weights w, (N,).
        """
        if (known := self._kept.gradients(terms)) is not None:
            return known
        return self.by_name(self.vjp(_summed(terms)))

    @full_precision()
    def gram_blocks(self, cotangents: Tensor) -> dict[tuple[str, ...], Tensor]:
        """Return the part of each layer in :meth:`gram_of`, by the names of its parameters.

        A block is a weight with the bias that always goes with it, or one other parameter. Blocks
        sum to the whole matrix.

        Args:
            cotangents: c, (K, N, ..., C) float64.
        """
        return gram_blocks(self._batches, cotangents, self.route)

    def factors(
        self, cotangents: Tensor, numbers: int | None = None
    ) -> Iterator[LayerFactors | FormedRows]:
        """Yield what each layer's block of sum_kn J^T c_kn c_kn^T J is made of, in parts.

        Layers with a weight matrix have inputs and output gradients, all other parameters their
        per-sample gradients (:mod:`evalkit.linearization.factors`). Each part is of some samples;
        sums over samples are for the caller to take. Every trainable parameter is in one of them.

        Args:
            cotangents: c, (K, N, ..., C) float64.
            numbers: in a part, at most, unless a single sample has more; None for as many as may be
                held at once.
        """
        return layer_factors(self._batches, cotangents, self.route, numbers)

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

    @Shared
    def gradient_norms(self) -> Tensor:
        """|G_n|, the norms of the per-sample gradients: (N,) float64."""
        return row_norms(self.gram, self.logit_gradients, self.gram_of)


def _summed(terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum of w_n c_n over terms (c, w): like c."""
    return torch.stack([w.view(-1, *[1] * (c.dim() - 1)) * c for c, w in terms]).sum(0)
