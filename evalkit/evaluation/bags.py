"""Bags of lookups in a table, as ``F.embedding_bag`` takes them, in a rectangle."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Bags:
    """N bags, each filled up to the length of the longest.

    Attributes:
        indices: rows of the table, (N, T).
        kept: which of them belong to a bag, (N, T).
        weights: the weights of the lookups, (N, T), None for ones.
    """

    indices: Tensor
    kept: Tensor
    weights: Tensor | None

    def without(self, padding: int | None, entries: int) -> Bags:
        """Return the bags without the lookups of one row.

        Args:
            padding: its index, negative from the end; None for no such row.
            entries: rows of the table.
        """
        if padding is None:
            return self
        row = padding + entries if padding < 0 else padding
        return replace(self, kept=self.kept & (self.indices != row))


def bags_of(
    input: Tensor, offsets: Tensor | None, include_last: bool, weights: Tensor | None
) -> Bags | None:
    """Return the bags that the arguments of ``F.embedding_bag`` describe, None for none.

    Args:
        input: indices, (N, T), or of all bags one after the other.
        offsets: where each bag starts in the latter.
        include_last: the offsets end with the end of the last bag.
        weights: like the input.
    """
    if input.is_nested or (weights is not None and weights.shape != input.shape):
        return None
    if input.dim() == 2 and offsets is None:
        kept = torch.ones_like(input, dtype=torch.bool)
        return Bags(input, kept, weights) if input.shape[1] else None
    if input.dim() != 1 or offsets is None or offsets.dim() != 1 or not len(offsets):
        return None
    starts = offsets[:-1] if include_last else offsets
    ends = torch.cat([offsets[1:], offsets.new_tensor([len(input)])])
    lengths = ends[: len(starts)] - starts
    if int(offsets[0]) != 0 or bool((lengths < 0).any()):
        return None
    # Where no bag holds anything, one lookup that belongs to none: torch wants an index.
    steps = torch.arange(max([1, *lengths.tolist()]), device=input.device)
    places = (starts[:, None] + steps).clamp(max=max(0, len(input) - 1))
    kept = steps < lengths[:, None]
    if not len(input):
        return Bags(torch.zeros_like(places), kept, None)
    return Bags(input[places], kept, None if weights is None else weights[places])


def reduced(bags: Bags, looked: Tensor, mode: str) -> Tensor | None:
    """Return one row for each bag, zero for an empty one: (N, width); None for an unknown mode.

    Args:
        bags: the bags of the lookups.
        looked: the rows that were looked up, (N, T, width).
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
    """
    outside = ~bags.kept.unsqueeze(-1)
    if mode == "max":
        largest = looked.masked_fill(outside, -torch.inf).max(1).values
        return largest.masked_fill(outside.all(1), 0)
    rows = looked if bags.weights is None else looked * bags.weights.unsqueeze(-1)
    total = rows.masked_fill(outside, 0).sum(1)
    if mode == "mean":
        return total / bags.kept.sum(1, keepdim=True).clamp(min=1)
    return total if mode == "sum" else None
