"""Embeddings: rows of a table, looked up by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from evalkit.errors import EvalkitError
from evalkit.layers.base import MovedLayer, WeightCalls
from evalkit.layers.rows import Formed, Lookups


@dataclass(frozen=True, eq=False)
class Embedding(MovedLayer):
    """One call of ``F.embedding`` with indices (N, ...) as its inputs.

    Attributes:
        padding: the index whose row gets no gradient, None for none.
    """

    padding: int | None

    def masked(self, values: Tensor) -> Tensor:
        """Return values at the lookups, (..., *inputs, width), zero at the padding."""
        # Torch looks the padding's row up and gives it no gradient, so that nothing may move by it.
        if self.padding is None:
            return values
        return values * (self.inputs != self.padding).unsqueeze(-1)

    @classmethod
    def together(cls, layers: Sequence[Embedding]) -> LookupCalls:
        """Return calls whose lookups lie behind each other."""
        return LookupCalls(layers)

    def moved(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the looked-up rows of v_W."""
        assert weight is not None
        return self.masked(functional.embedding(self.inputs, weight))

    def weight_gradient(self, d: Tensor) -> Tensor:
        """Return the table with each d added to the row of its index."""
        assert self.weight is not None
        table = d.new_zeros(self.weight.shape)
        return table.index_add_(0, self.inputs.flatten(), self.masked(d).flatten(0, -2))

    def bias_gradient(self, d: Tensor) -> Tensor:
        """An embedding has no bias."""
        raise NotImplementedError

    def positions(self) -> Tensor:
        """Return the indices of each sample."""
        return self.inputs.reshape(len(self.inputs), -1)

    def rows_at(self, positions: Tensor, d: Tensor, bias: bool = False) -> Lookups:
        """Return rows that add each d_n to the row of its index."""
        assert self.weight is not None
        masked = self.masked(d).reshape(*d.shape[:2], -1, d.shape[-1])
        return Lookups(positions, masked, len(self.weight))

    def bias_rows(self, d: Tensor) -> Formed:
        """An embedding has no bias."""
        raise NotImplementedError


class LookupCalls(WeightCalls):
    """Calls of ``F.embedding`` with one table."""

    def __init__(self, layers: Sequence[Embedding]) -> None:
        super().__init__(layers)
        self._lookups = layers

    def through(self, d: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return, at each lookup, the sum of d over all lookups of the same index."""
        indices = torch.cat([layer.inputs.flatten() for layer in self._lookups])
        # J J^T d at a lookup is the sum of d over the lookups of its index: no table is formed.
        entries, places = indices.unique(return_inverse=True)
        masked = [layer.masked(x).flatten(0, -2) for layer, x in zip(self._lookups, d, strict=True)]
        sums = d[0].new_zeros(len(entries), d[0].shape[-1])
        sums.index_add_(0, places, torch.cat(masked))
        parts = sums[places].split([len(part) for part in masked])
        return [
            layer.masked(part.view_as(x))
            for layer, part, x in zip(self._lookups, parts, d, strict=True)
        ]


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Embedding | None:
    """Return the layer of a call of ``F.embedding``, whose argument names these are, or None.

    Raises:
        EvalkitError: what torch returns as the gradient is scaled by counts.
    """
    if scale_grad_by_freq:
        raise EvalkitError(
            "expected embeddings with plain gradients, found one with scale_grad_by_freq=True; set "
            "its scale_grad_by_freq to False, which changes no output"
        )
    # max_norm rewrites the table within the forward; a single index has no sample axis.
    if max_norm is not None or input.dim() < 1:
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    indices = input.detach().to(torch.int64)
    return Embedding(indices, weight, None, padding_idx)
