"""One model, one batch, linearised at the model's parameters, with the graph kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from evalkit.errors import EvalkitError
from evalkit.evaluation.failures import range_failures
from evalkit.evaluation.full_precision import full_precision
from evalkit.evaluation.given import Inputs
from evalkit.factor import GramFactor
from evalkit.factorization import factorize, factorize_rows
from evalkit.layers.rows import GradientRows
from evalkit.linearization.factors import (
    FormedRows,
    LayerFactors,
    formed,
    layer_factors,
)
from evalkit.linearization.gram import (
    gram_blocks,
    gram_matrix,
    row_norms,
    scaled_cotangents,
    side,
)
from evalkit.linearization.kept import summed_terms
from evalkit.linearization.loss_terms import Shared
from evalkit.linearization.per_sample import PerSample, defining_gradients
from evalkit.linearization.sample_gradients import SampleGradients
from evalkit.notebooks import facts_html

T = TypeVar("T")

MOST_ROW_NUMBERS = 1 << 22
"""Numbers in per-sample gradients that a float64 evaluation forms to factorise them: 32 MiB."""


class Linearization(SampleGradients):
    """One model on one batch of N samples with P trainable parameters, linearised.

    The linear maps of :class:`evalkit.linearization.linear_maps.LinearMaps`, what follows from the
    loss at the logits (:class:`evalkit.linearization.loss_terms.LossTerms`), and what both make:
    with r_n = d l_n / d z_n, the gradient g = sum_n J_n^T r_n, per-sample gradients
    G_n = J_n^T r_n, and their Gram matrix K_nm = G_n . G_m
    (:class:`evalkit.linearization.sample_gradients.SampleGradients`).

    Theta is flattened row-major in the order of ``model.named_parameters()``. Vectors are (P,) in
    the model's dtype; logit-shaped values are like ``logits``. Sums over the batch are float64, and
    sums, never means.
    """

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        facts = {
            "samples": self.num_samples,
            "trainable parameters": self.num_params,
            "outputs": " x ".join(map(str, self.logits.shape)),
            "likelihood": self.likelihood.name,
            "dtype": str(self.logits.dtype).removeprefix("torch."),
            "device": str(self.logits.device),
            "mean loss": float(self.losses.double().mean()),
            "gamma floor": self.gamma_floor,
        }
        return facts_html("Linearization", facts)

    def _parts(
        self, cotangents: Tensor, route: PerSample | None, numbers: int | None = None
    ) -> Iterator[LayerFactors | FormedRows]:
        """Yield factors and rows by a route, as :meth:`factors`."""
        return layer_factors(self._batches, cotangents, route, numbers)

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
        formed_rows = self.logits.dtype == torch.float64 and size <= MOST_ROW_NUMBERS
        with range_failures():
            rows = self.sample_gradients(cotangents) if formed_rows else gram()
            factor = (
                factorize_rows(rows)
                if formed_rows
                else factorize(rows, unit=self.unit, columns=self.num_params)
            )
        # Inner products are alike to the last digit where rows are not: squares hide more.
        deficient = formed_rows and not factor.complete
        if deficient and factor.rank >= self._distinct(cotangents, rows):
            return replace(factor, complete=True, certain=True)
        return factor

    def _distinct(self, cotangents: Tensor, rows: Tensor) -> int:
        """Return how many cotangents are left when those of samples that repeat are counted once.

        Samples repeat that have the same logits, cotangents and gradients, to the last digit.

        Args:
            cotangents: c, (K, N, ..., C) float64.
            rows: their gradients, (K N, P).
        """
        logits, weights = self.logits.double(), torch.arange(1, cotangents[0, 0].numel() + 1)
        tells = [self.sample_dots(logits, weights.to(logits).view_as(logits[0]).expand_as(logits))]
        keys = [
            torch.stack([*tells, self.sample_dots(c, logits), self.sample_dots(c, c)], 1)
            for c in cotangents
        ]
        return len(torch.unique(torch.cat([torch.cat(keys), rows], 1), dim=0))

    @full_precision()
    def sample_gradients(self, cotangents: Tensor) -> Tensor:
        """Return J_n^T c_kn, formed: (K N, P) float64; row k N + n belongs to cotangent k.

        Args:
            cotangents: c, (K, N, ..., C) float64.
        """
        rows = formed(self.parameters, cotangents, self._parts(cotangents, self.route))
        # One sample at a time, a model may do something else than in the batch.
        along = torch.cat([self.sample_dots(draw, self.gradient_jvp) for draw in cotangents])
        wrong = (rows @ self.gradient.double() - along).abs()
        if (wrong > self.unit**0.6 * rows.norm(dim=1) * self.gradient_norm).any():
            by_definition = self._parts(cotangents, defining_gradients)
            rows = formed(self.parameters, cotangents, by_definition)
        return rows

    def in_float64(self) -> Linearization:
        """Return the same model and batch linearised in float64: about three times the work."""
        return type(self)(self._batches.in_float64(), self.likelihood, self._given)

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
        return self._inner(cotangents, self.route)

    @Shared
    def gradient_norms(self) -> Tensor:
        """|G_n|, the norms of the per-sample gradients: (N,) float64."""
        return row_norms(self.gram, self.logit_gradients, self.gram_of)

    @full_precision()
    def inner_products(
        self, cotangents: Tensor, others: Tensor | None = None, key: str | None = None
    ) -> Tensor:
        """Return the inner products of J_n^T c_kn with J_m^T e_jm, and keep none of c.

        Args:
            cotangents: c, (K, N, ..., C) float64.
            others: e, (K', N, ..., C) float64; None for c itself.
            key: with others, what they pulled back to is kept under it, for other c.

        Returns:
            (K N, K' N) float64; row k N + n belongs to cotangent k of sample n.
        """
        route, kept = self.route, None
        if others is not None and key is not None:
            kept = self.shared(key, lambda: side(self._batches, others, route))
        return gram_matrix(self._batches, cotangents, route, others, kept)

    def by_share(self, function: Callable[..., T], *arguments: Any) -> list[T]:
        """Return what a function makes of the forward passes, in the order of the samples.

        A batch that is split over processes is in several shares, each of which has its own.

        Args:
            function: importable by its name; called with the forward passes of a share, which
                samples of the batch they are of, and the arguments.
            arguments: of it.
        """
        return [function(self._batches, slice(0, self.num_samples), *arguments)]

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
        return self.kernel_product(summed_terms(terms))

    @full_precision()
    def weighted_gradients(self, terms: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return d = sum_n J_n^T w_n c_n over terms (c, w), by parameter's name, in its shape.

        Where inner products of all J_n^T c_n have been asked for, no backward is needed: their
        output gradients are at hand. Parameters that the logits do not depend on may be left out.

        Args:
            terms: pairs of cotangents c, like logits in float64, and weights w, (N,).
        """
        if (known := self._kept.gradients(terms)) is not None:
            return known.formed
        return self.by_name(self.vjp(summed_terms(terms)))

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
        return self._parts(cotangents, self.route, numbers)
