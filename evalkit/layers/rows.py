"""Inner products of per-sample gradients of one parameter, without forming them where it pays.

Rows belong to K cotangents for each of N samples: row k N + n is the gradient of sample n for its
cotangent k. The layer's inputs are the same for all k. Inner products are taken in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

ELEMENTS_AT_ONCE = 1 << 24
"""Float64 numbers in one intermediate array: 128 MiB."""


class GradientRows(ABC):
    """The per-sample gradients of one parameter."""

    @classmethod
    @abstractmethod
    def joined(cls, parts: Sequence[Any]) -> Self:
        """Return the rows of a parameter that several calls use: the sums of theirs."""

    @abstractmethod
    def inner(self, other: Any) -> Tensor:
        """Return the inner products with other rows of the same parameter: (K N, K' N')."""


@dataclass(frozen=True, eq=False)
class Formed(GradientRows):
    """Rows given as they are, for parameters that are small.

    Attributes:
        values: (K, N, size) float64.
    """

    values: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Formed]) -> Formed:
        """Return the sum of all parts."""
        return cls(torch.stack([part.values for part in parts]).sum(0))

    def inner(self, other: Formed) -> Tensor:
        """Return the inner products."""
        return self.values.flatten(0, 1) @ other.values.flatten(0, 1).T


@dataclass(frozen=True, eq=False)
class OuterProducts(GradientRows):
    """Rows sum_t d_t a_t^T, one matrix for each group, as linear and convolutional weights have.

    Attributes:
        a: (groups, N, T, in), the inputs at T positions.
        d: (groups, K, N, T, out), the output gradients there.
    """

    a: Tensor
    d: Tensor

    @classmethod
    def joined(cls, parts: Sequence[OuterProducts]) -> OuterProducts:
        """Return rows over the positions of all parts."""
        if len(parts) == 1:
            return parts[0]
        return cls(torch.cat([part.a for part in parts], 2), torch.cat([p.d for p in parts], 3))

    def inner(self, other: OuterProducts) -> Tensor:
        """Return sum_{t,s} (a_nt . a_ms) (d_knt . d_jms) by the cheaper of two routes."""
        groups, draws, samples, _, _ = self.d.shape
        _, draws_, samples_, _, _ = other.d.shape
        pairs, formed = pair_costs(self.d.shape, other.d.shape, self.a.shape[-1])
        rows, rows_ = draws * samples, draws_ * samples_
        total = self.d.new_zeros(rows, rows_, dtype=torch.float64)
        add = _add_pairs if pairs <= formed else _add_formed
        for group in range(groups):
            left = (self.a[group].double(), self.d[group].double())
            same = other is self
            right = left if same else (other.a[group].double(), other.d[group].double())
            add(total.view(draws, samples, draws_, samples_), *left, *right, same)
        return total


def pair_costs(left: Sequence[int], right: Sequence[int], inside: int) -> tuple[int, int]:
    """Return the multiplications for inner products of outer products, by pairs and formed.

    In each group: N T M S in + K N T J M S out for pairs of positions; (K N T + J M S) in out +
    K N J M in out with the gradients formed.

    Args:
        left: shape of d, (groups, K, N, T, out).
        right: shape of the other d, (groups, J, M, S, out).
        inside: in, the width of a.
    """
    groups, draws, samples, positions, width = left
    _, draws_, samples_, positions_, _ = right
    rows, rows_ = draws * samples, draws_ * samples_
    spots = samples * positions * samples_ * positions_
    pairs = spots * (inside + draws * draws_ * width)
    formed = (rows * positions + rows_ * positions_ + rows * rows_) * width * inside
    return groups * pairs, groups * formed


def _add_pairs(total: Tensor, a: Tensor, d: Tensor, b: Tensor, e: Tensor, same: bool) -> None:
    """Add the sum over pairs of positions; ``same`` rows on both sides are taken once."""
    (draws, samples, positions, _), (draws_, samples_, positions_, _) = d.shape, e.shape
    step = max(1, ELEMENTS_AT_ONCE // (positions * samples_ * positions_))
    for start in range(0, samples, step):
        here = slice(start, start + step)
        spots = a[here].flatten(0, 1) @ b.flatten(0, 1).T
        for k in range(draws):
            for j in range(k if same else 0, draws_):
                products = d[k, here].flatten(0, 1) @ e[j].flatten(0, 1).T
                products.mul_(spots)
                if positions * positions_ > 1:
                    products = products.view(-1, positions, samples_, positions_).sum((1, 3))
                total[k, here, j] += products
                if same and j > k:
                    total[j, :, k, here] += products.T


def _add_formed(total: Tensor, a: Tensor, d: Tensor, b: Tensor, e: Tensor, same: bool) -> None:
    """Add the inner products of formed gradients, a slice of the outputs at a time."""
    flat = total.view(d.shape[:2].numel(), -1)
    largest = max(d.shape[:2].numel(), e.shape[:2].numel())
    step = max(1, ELEMENTS_AT_ONCE // (largest * a.shape[-1]))
    for part, part_ in zip(d.split(step, -1), e.split(step, -1), strict=True):
        left = _formed(a, part)
        right = left if same else _formed(b, part_)
        flat.addmm_(left, right.T)


def _formed(a: Tensor, d: Tensor) -> Tensor:
    """Return d_kn^T a_n, flat: (K N, out * in)."""
    return torch.cat([torch.bmm(draw.transpose(1, 2), a).flatten(1) for draw in d])


@dataclass(frozen=True, eq=False)
class Lookups(GradientRows):
    """Rows that add d_t to the row of a table named by an index, as embeddings have.

    Attributes:
        indices: (N, T).
        d: (K, N, T, width), zero where a lookup has no gradient.
    """

    indices: Tensor
    d: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Lookups]) -> Lookups:
        """Return rows over the positions of all parts."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([part.indices for part in parts], 1), torch.cat([p.d for p in parts], 2)
        )

    def inner(self, other: Lookups) -> Tensor:
        """Return the inner products over the entries that both sides look up.

        With U such entries, K N J M U width multiplications, a slice of the width at a time.
        """
        used, used_ = self.indices.unique(), other.indices.unique()
        entries = used[torch.isin(used, used_)]
        rows, rows_ = self.d.shape[:2].numel(), other.d.shape[:2].numel()
        total = self.d.new_zeros(rows, rows_, dtype=torch.float64)
        step = max(1, ELEMENTS_AT_ONCE // (max(rows, rows_) * max(1, len(entries))))
        for start in range(0, self.d.shape[-1], step):
            here = slice(start, start + step)
            left = self._scattered(entries, here)
            right = left if other is self else other._scattered(entries, here)
            total.addmm_(left, right.T)
        return total

    def _scattered(self, entries: Tensor, columns: slice) -> Tensor:
        """Return the gradients in some entries and columns of the table: (K N, U * columns)."""
        draws, samples, _, width = self.d[..., columns].shape
        places = torch.searchsorted(entries, self.indices).clamp_max(max(len(entries) - 1, 0))
        found = entries[places] == self.indices if len(entries) else places < 0
        kept = self.d[..., columns].double() * found[..., None]
        offsets = torch.arange(samples, device=entries.device)[:, None] * len(entries)
        table = kept.new_zeros(draws, samples * len(entries), width)
        table.index_add_(1, (places + offsets).flatten(), kept.flatten(1, 2))
        return table.view(draws * samples, len(entries) * width)
