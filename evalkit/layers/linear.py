"""Linear layers: y = x W^T + b."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from evalkit.layers.base import MovedLayer, WeightCalls
from evalkit.layers.low_rank import LowRank
from evalkit.layers.products import inner_products
from evalkit.layers.rows import Formed, OuterProducts
from evalkit.layers.work import LayerWork

MOST_SPOTS = 1 << 21
"""Inner products of inputs that a call keeps for other cotangents: 16 MiB."""


@dataclass(frozen=True, eq=False)
class Linear(MovedLayer):
    """One call of ``F.linear`` with inputs (N, ..., in)."""

    has_matrix = True

    @property
    def work(self) -> LayerWork:
        """One group, the positions, in and out."""
        assert self.weight is not None
        outside, inside = self.weight.shape
        return LayerWork(1, self.inputs[0].numel() // inside, inside, outside)

    @classmethod
    def together(cls, layers: Sequence[Linear]) -> LinearCalls:
        """Return calls whose positions lie under each other."""
        return LinearCalls(layers)

    def moved(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return x v_W^T + v_b."""
        if weight is not None:
            return functional.linear(self.inputs, weight, bias)
        assert bias is not None
        return bias.expand(*self.inputs.shape[:-1], len(bias))

    def moved_by(self, weight: LowRank, bias: Tensor | None) -> Tensor:
        """Return (x R) L^T + v_b."""
        inner = functional.linear(self.inputs, weight.right.mT)
        return functional.linear(inner, weight.left, bias)

    def weight_gradient(self, d: Tensor) -> Tensor:
        """Return D^T A over all positions."""
        return d.flatten(0, -2).T @ self.inputs.flatten(0, -2)

    def bias_gradient(self, d: Tensor) -> Tensor:
        """Return the column sums of D."""
        return d.flatten(0, -2).sum(0)

    def positions(self) -> Tensor:
        """Return the inputs of each sample."""
        return self.inputs.reshape(1, len(self.inputs), -1, self.inputs.shape[-1])

    def weight_rows(self, d: Tensor, bias: bool = False) -> OuterProducts:
        """Return these rows with the inner products of the inputs, where they are kept."""
        return replace(self.rows_at(self.positions(), d, bias), spots=self._spots)

    @cached_property
    def _spots(self) -> Tensor | None:
        """The inner products of the inputs in float64, None with several positions or many."""
        if self.inputs.dim() > 2 or len(self.inputs) ** 2 > MOST_SPOTS:
            return None
        return inner_products(self.inputs, self.inputs)

    def rows_at(self, positions: Tensor, d: Tensor, bias: bool = False) -> OuterProducts:
        """Return rows D_n^T A_n."""
        return OuterProducts(positions, d.reshape(*d.shape[:2], -1, d.shape[-1])[None], bias)

    def bias_rows(self, d: Tensor) -> Formed:
        """Return the column sums of D_n."""
        return Formed(d.double().reshape(*d.shape[:2], -1, d.shape[-1]).sum(2))


class LinearCalls(WeightCalls):
    """Calls of ``F.linear`` with one weight, as one call with all their positions as rows.

    The weight's part of J^T c is D^T A over these rows, and moves the outputs by A (D^T A)^T =
    (A A^T) D. With fewer rows than features, as for an MLP on a batch, the right side takes far
    fewer multiplications, and A A^T is the same for every c.
    """

    def __init__(self, layers: Sequence[Linear]) -> None:
        super().__init__(layers)
        self._inputs = [layer.inputs for layer in layers]

    @property
    def input_rows(self) -> Tensor:
        """The inputs at all positions."""
        return _rows(self._inputs)

    def output_rows(self, d: Sequence[Tensor]) -> Tensor:
        """Return the output gradients at all positions."""
        return _rows(d)

    def write_gradient(self, d: Sequence[Tensor], scale: Tensor, out: Tensor) -> None:
        """Multiply D^T A straight into the result.

        Fresh memory for 10 million numbers costs more than a matrix product, and is taken once.
        """
        torch.mm((_rows(d) * scale).T, self.input_rows, out=out)

    def through(self, d: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return A (A^T D) or (A A^T) D, whichever takes fewer multiplications."""
        a, rows = self.input_rows, _rows(d)
        (count, inside), outside = a.shape, rows.shape[-1]
        # n^2 (in + out) multiplications with A A^T, n its rows, and 2 n in out the other way.
        if count * (inside + outside) > 2 * inside * outside:
            moved = a @ (a.T @ rows)
        else:
            moved = self._inner_products @ rows
        return self.parts(moved)

    def parts(self, rows: Tensor) -> list[Tensor]:
        """Return rows at all positions as changes of the outputs of each call."""
        parts = rows.split([x.shape[:-1].numel() for x in self._inputs])
        return [part.view(*x.shape[:-1], -1) for part, x in zip(parts, self._inputs, strict=True)]

    @cached_property
    def _inner_products(self) -> Tensor:
        a = self.input_rows
        return a @ a.T


def _rows(values: Sequence[Tensor]) -> Tensor:
    """Return all positions under each other."""
    parts = [value.reshape(-1, value.shape[-1]) for value in values]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Linear | None:
    """Return the layer of a call of ``F.linear``, whose argument names these are, or None."""
    # A single vector has no sample axis; a weight that is one gives outputs no axis of their own.
    if input.dim() < 2 or weight.dim() != 2:
        return None
    # A bias of another shape is broadcast over the outputs, of which its rule does not know.
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return Linear(input.detach(), weight, bias)
