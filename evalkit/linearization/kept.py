"""Output gradients that are kept: sums of per-sample gradients that need no backward any more.

The Gram matrix of J_n^T c_n takes one backward of the whole batch, which brings the output
gradients d_n of every call of a layer. Where samples do not influence each other, those of weighted
cotangents w_n c_n are w_n d_n, so that J J^T (w c) takes the layers' own parts and one J v.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.linearization.gram import Side, scaled_cotangents
from evalkit.linearization.micro_batches import MicroBatches
from evalkit.linearization.ruled_rows import OutputGradients
from evalkit.linearization.weighted_outputs import WeightedGradients
from evalkit.reductions import power_of_two

MOST_KEPT = 1 << 27
"""Numbers in the output gradients of one set of cotangents that are kept: 512 MiB in float32. Each
set by itself, so that no row depends on what other methods had kept before."""


@dataclass(frozen=True, eq=False)
class _Kept:
    """What K cotangents per sample pulled back to.

    Attributes:
        cotangents: c, (K, N, ..., C) float64, a copy: others may change theirs.
        scales: what they were divided by before, (K, N).
        pulled: their output gradients.
    """

    cotangents: Tensor
    scales: Tensor
    pulled: OutputGradients


@dataclass(frozen=True, eq=False)
class Gradients:
    """J^T c by parameter's name.

    Attributes:
        formed: in the shapes of the parameters, without those that the logits do not depend on.
        rows: of some weights, D, (rows, out), where the weight's part is D^T A.
    """

    formed: dict[str, Tensor]
    rows: dict[str, Tensor]


class KeptGradients:
    """The output gradients of a batch that is linearised as a whole, none of micro-batches.

    Args:
        batches: the forward passes; None where there is no sample.
    """

    def __init__(self, batches: MicroBatches | None) -> None:
        whole = batches is not None and len(batches) == 1
        self._tangents = batches[0].tangents if batches is not None and whole else None
        self._kept: list[_Kept] = []

    def forget(self) -> None:
        """Let go of all of them."""
        self._kept.clear()

    def keep(self, cotangents: Tensor, side: Side | None) -> None:
        """Keep output gradients, unless they are too many or do not cover every parameter.

        Args:
            cotangents: c, (K, N, ..., C) float64.
            side: their per-sample gradients, None where there are several micro-batches.
        """
        if side is None or self._tangents is None or not side.by_rules:
            return
        if any(torch.equal(one.cotangents, cotangents) for one in self._kept):
            return
        numbers = sum(d.numel() for d in side.pulled.gradients if d is not None)
        if numbers > MOST_KEPT or not self._tangents.covered_by(side.pulled):
            return
        scales = scaled_cotangents(cotangents, side.cotangents.dtype)[1]
        self._kept.append(_Kept(cotangents.clone(), scales.view(cotangents.shape[:2]), side.pulled))

    def product(self, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor | None:
        """Return J J^T c for c = the sum of w_n c_n over some terms: like logits, float64.

        Args:
            terms: pairs of cotangents c, like logits in float64, and weights w, (N,).

        Returns:
            None where the output gradients of one of them have not been kept.
        """
        known = self._parts(terms)
        if self._tangents is None or known is None:
            return None
        parts, scale = known
        return self._tangents.weighted_product(parts).double() * scale

    def gradients(
        self, terms: Sequence[tuple[Tensor, Tensor]], by_rows: Collection[str] = ()
    ) -> Gradients | None:
        """Return J^T c for c = the sum of w_n c_n over some terms, by parameter's name.

        Args:
            terms: as for :meth:`product`.
            by_rows: names of weights, of
                :attr:`evalkit.linearization.tangents.Tangents.input_rows`, of whose gradients D^T A
                the rows D are asked for.

        Returns:
            None where the output gradients of a term have not been kept.
        """
        known = self._parts(terms)
        if self._tangents is None or known is None:
            return None
        parts, scale = known
        formed = self._tangents.weighted_gradients(parts, but=by_rows)
        rows = self._tangents.weighted_rows(parts, by_rows)
        return Gradients(
            {name: value.mul_(scale) for name, value in formed.items()},
            {name: value * scale for name, value in rows.items()},
        )

    def _parts(
        self, terms: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[list[WeightedGradients], Tensor] | None:
        """Return what is kept of some terms, with weights of order one and the scale taken out."""
        found = [self._weighted(*term) for term in terms]
        known = [one for one in found if one is not None]
        if not known or len(known) < len(found):
            return None
        scale = power_of_two(torch.stack([weights for *_, weights in known]))
        return [(kept, draw, weights / scale) for kept, draw, weights in known], scale

    def _weighted(self, cotangents: Tensor, weights: Tensor) -> WeightedGradients | None:
        """Return kept output gradients of cotangents, with the weights that they have in a sum."""
        for kept in self._kept:
            for draw, known in enumerate(kept.cotangents):
                # By value: a method may make its cotangents anew for every damping.
                if torch.equal(known, cotangents):
                    return kept.pulled, draw, weights * kept.scales[draw]
        return None


def summed_terms(terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum of w_n c_n over terms (c, w): like c."""
    return torch.stack([w.view(-1, *[1] * (c.dim() - 1)) * c for c, w in terms]).sum(0)
