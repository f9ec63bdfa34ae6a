"""Inner products of per-sample gradients of one parameter, without forming them where it pays.

Rows belong to K cotangents for each of N samples: row k N + n is the gradient of sample n for its
cotangent k. The layer's inputs are the same for all k. Inner products are taken in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from evalkit.layers.budget import Budget
from evalkit.layers.products import add_products, inner_products
from evalkit.layers.work import by_pairs


class GradientRows(ABC):
    """The per-sample gradients of one parameter."""

    @classmethod
    @abstractmethod
    def joined(cls, parts: Sequence[Any]) -> GradientRows:
        """Return the rows of a parameter that several calls use: the sums of theirs."""

    @property
    def bare(self) -> GradientRows:
        """The same rows without what is kept beside them, as they are sent to other processes."""
        return self

    @property
    def form(self) -> tuple[str, bool]:
        """What must be equal for inner products of two: the kind, and whether a bias is inside."""
        return type(self).__name__, bool(getattr(self, "bias", False))

    @abstractmethod
    def formed(self, samples: slice) -> Tensor:
        """Return the rows of some samples as numbers: (K, n, size)."""

    @abstractmethod
    def add_inner(self, total: Tensor, other: Any, budget: Budget) -> None:
        """Add the inner products with other rows of the same parameter.

        Args:
            total: (K, N, K', N') float64, to add to.
            other: of K' cotangents for each of N' samples; the same object for a symmetric matrix,
                of which blocks below the diagonal may be left out (:func:`mirror`).
            budget: how much is formed at a time.
        """


def mirror(total: Tensor) -> None:
    """Set the blocks of a symmetric matrix below its diagonal to those above it.

    Args:
        total: (K, N, K, N); block (k, j) belongs to two of the K cotangents.
    """
    for k in range(len(total) - 1):
        total[k + 1 :, :, k] = total[k, :, k + 1 :].permute(1, 2, 0)


@dataclass(frozen=True, eq=False)
class Formed(GradientRows):
    """Rows given as they are, for parameters that are small.

    Attributes:
        values: (K, N, size).
    """

    values: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Formed]) -> Formed:
        """Return the sum of all parts."""
        if len(parts) == 1:
            return parts[0]
        return cls(torch.stack([part.values for part in parts]).sum(0))

    def formed(self, samples: slice) -> Tensor:
        """Return the rows of some samples: (K, n, size)."""
        return self.values[:, samples]

    def add_inner(self, total: Tensor, other: Formed, budget: Budget) -> None:
        """Add the products of the values."""
        left = self.values.flatten(0, 1)
        right = left if other is self else other.values.flatten(0, 1)
        add_products(total, left, right, budget)


@dataclass(frozen=True, eq=False)
class OuterProducts(GradientRows):
    """Rows sum_t d_t a_t^T, one matrix for each group, as linear and convolutional weights have.

    Attributes:
        a: (groups, N, T, in), the inputs at T positions.
        d: (groups, K, N, T, out), the output gradients there.
        bias: whether the rows of a bias, sum_t d_t, belong to these, as if a had a column of ones.
        spots: a a^T over all positions, (N T, N T) float64, where one group's call has kept it.
    """

    a: Tensor
    d: Tensor
    bias: bool
    spots: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[OuterProducts]) -> OuterProducts:
        """Return rows over the positions of all parts."""
        if len(parts) == 1:
            return parts[0]
        a, d = torch.cat([part.a for part in parts], 2), torch.cat([part.d for part in parts], 3)
        return cls(a, d, parts[0].bias)

    @property
    def outer(self) -> OuterProducts:
        """Itself."""
        return self

    @property
    def bare(self) -> OuterProducts:
        """The same rows without inner products of a."""
        return replace(self, spots=None)

    def formed(self, samples: slice) -> Tensor:
        """Return the rows of some samples: the weight in its own order, then the bias."""
        a, d = self.a[:, samples], self.d[:, :, samples]
        matrices = torch.einsum("gknto,gnti->kngoi", d, a).flatten(2)
        sums = d.sum(3).movedim(0, 2).flatten(2)
        return torch.cat([matrices, sums], 2) if self.bias else matrices

    def add_inner(self, total: Tensor, other: Any, budget: Budget) -> None:
        """Add sum_{t,s} (a_nt . a_ms) (d_knt . d_jms) by the cheaper of two routes."""
        outer: OuterProducts = other.outer
        # By multiplications alone, never by the machine: the last digits depend on the way.
        pairs = by_pairs(self.d.shape, outer.d.shape, self.a.shape[-1])
        same = outer is self
        for group in range(len(self.d)):
            left = self.a[group], self.d[group]
            right = left if same else (outer.a[group], outer.d[group])
            if pairs:
                left = left[0], left[1].double()
                right = left if same else (right[0], right[1].double())
                spots = self.spots if self.spots is outer.spots else None
                _add_pairs(total, left, right, self.bias, budget, spots)
            else:
                _add_formed(total, left, right, self.bias, budget)


def _add_pairs(
    total: Tensor,
    left: tuple[Tensor, Tensor],
    right: tuple[Tensor, Tensor],
    bias: bool,
    budget: Budget,
    spots: Tensor | None,
) -> None:
    """Add the sums over pairs of positions; of a symmetric matrix those above the diagonal.

    Args:
        total: (K, N, K', N') float64, to add to.
        left: a and d of one group, d in float64.
        right: those of the columns.
        bias: whether the rows of a bias belong to these.
        budget: how much is formed at a time.
        spots: the inner products of all of a, where they are known.
    """
    (a, d), (b, e) = left, right
    same = left is right
    (draws, samples, positions, _), (draws_, samples_, positions_, _) = d.shape, e.shape
    step = max(1, budget.elements // (positions * draws_ * samples_ * positions_))
    for start in range(0, samples, step):
        here = slice(start, start + step)
        whole = same and step >= samples
        rows = a[here].flatten(0, 1)
        near = None if spots is None else spots[start * positions :][: len(rows)]
        if near is None:
            near = inner_products(rows, rows if whole else b.flatten(0, 1))
        near = near + 1 if bias else near
        for k in range(draws):
            first = k if same else 0
            rows = d[k, here].flatten(0, 1)
            alone = whole and first + 1 == draws
            products = inner_products(rows, rows if alone else e[first:].flatten(0, 2))
            products = products.view(len(near), -1, samples_ * positions_)
            place = total[k, here, first:]
            if positions * positions_ == 1:  # a pass less through the matrix
                place.addcmul_(products, near[:, None])
                continue
            products.mul_(near[:, None])
            shape = (-1, positions, draws_ - first, samples_, positions_)
            place += products.view(shape).sum((1, 4))


def _add_formed(
    total: Tensor,
    left: tuple[Tensor, Tensor],
    right: tuple[Tensor, Tensor],
    bias: bool,
    budget: Budget,
) -> None:
    """Add the inner products of formed gradients, a slice of the outputs at a time.

    Gradients are formed in the precision of the model, as its own backward does.
    """
    (a, d), (b, e) = left, right
    same = left is right
    most = max(d.shape[:2].numel(), e.shape[:2].numel())
    step = max(1, budget.formed // (most * a.shape[-1]))
    for part, part_ in zip(d.split(step, -1), e.split(step, -1), strict=True):
        rows = _formed(a, part)
        add_products(total, rows, rows if same else _formed(b, part_), budget)
    if bias:
        sums = d.double().sum(2).flatten(0, 1)
        right_sums = sums if same else e.double().sum(2).flatten(0, 1)
        add_products(total, sums, right_sums, budget)


def _formed(a: Tensor, d: Tensor) -> Tensor:
    """Return d_kn^T a_n, flat: (K N, out * in)."""
    rows = a.new_empty(*d.shape[:2], d.shape[-1], a.shape[-1])
    # Into memory that is taken once: stacked draws would be copied.
    for draw, out in zip(d, rows, strict=True):
        torch.bmm(draw.transpose(1, 2), a, out=out)
    return rows.flatten(2).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Lookups(GradientRows):
    """Rows that add d_t to the row of a table named by an index, as embeddings have.

    Attributes:
        indices: (N, T).
        d: (K, N, T, width), zero where a lookup has no gradient.
        entries: rows of the table.
    """

    indices: Tensor
    d: Tensor
    entries: int

    @classmethod
    def joined(cls, parts: Sequence[Lookups]) -> Lookups:
        """Return rows over the positions of all parts."""
        if len(parts) == 1:
            return parts[0]
        indices, d = torch.cat([p.indices for p in parts], 1), torch.cat([p.d for p in parts], 2)
        return cls(indices, d, parts[0].entries)

    def formed(self, samples: slice) -> Tensor:
        """Return the rows of some samples with every entry of the table: (K, n, size)."""
        d, indices = self.d[:, samples], self.indices[samples]
        draws, count, _, width = d.shape
        tables = d.new_zeros(draws, count * self.entries, width)
        first = torch.arange(count, device=d.device)[:, None] * self.entries
        tables.index_add_(1, (indices + first).flatten(), d.flatten(1, 2))
        return tables.view(draws, count, -1)

    def add_inner(self, total: Tensor, other: Lookups, budget: Budget) -> None:
        """Add the inner products over the entries that both sides look up.

        With U entries that many samples share, K N J M U width multiplications, a slice of the
        width at a time; of the others, as most of a large table are, K J width for each pair of
        lookups.
        """
        used, counts = self.indices.unique(return_counts=True)
        used_, counts_ = other.indices.unique(return_counts=True)
        shared = torch.isin(used, used_)
        used, pairs = used[shared], counts[shared] * counts_[torch.isin(used_, used)]
        # Formed, an entry takes N M products of its width; by pairs of lookups, one for each pair,
        # whose rows are gathered.
        often = budget.pair * pairs > self.d.shape[1] * other.d.shape[1]
        self._add_entries(total, other, used[often], budget)
        self._add_pairs(total, other, used[~often], budget)

    def _add_entries(self, total: Tensor, other: Lookups, entries: Tensor, budget: Budget) -> None:
        """Add the inner products over some entries from their gradients, formed."""
        if not len(entries):
            return
        flat = total.view(self.d.shape[:2].numel(), other.d.shape[:2].numel())
        step = max(1, budget.elements // (max(flat.shape) * len(entries)))
        for start in range(0, self.d.shape[-1], step):
            here = slice(start, start + step)
            rows = self._scattered(entries, here)
            flat.addmm_(rows, (rows if other is self else other._scattered(entries, here)).T)

    def _add_pairs(self, total: Tensor, other: Lookups, entries: Tensor, budget: Budget) -> None:
        """Add the inner products over some entries from the pairs of lookups that share one."""
        (left, d), (right, e) = self._lookups(entries), other._lookups(entries)
        found, order = other.indices.flatten()[right].sort()
        right, wanted = right[order], self.indices.flatten()[left]
        starts = torch.searchsorted(found, wanted)
        counts = torch.searchsorted(found, wanted, right=True) - starts
        samples, samples_ = self.d.shape[1], other.d.shape[1]
        sums = total.new_zeros(samples * samples_, len(d) * len(e))
        first = counts.cumsum(0) - counts
        most = max(1, budget.doubled // (self.d.shape[-1] * max(len(d), len(e))))
        for start in range(0, int(counts.sum()), most):
            pair = torch.arange(start, min(start + most, int(counts.sum())), device=found.device)
            one = torch.searchsorted(first, pair, right=True) - 1
            two = right[starts[one] + pair - first[one]]
            one = left[one]
            products = torch.einsum("kpw,jpw->pkj", d[:, one].double(), e[:, two].double())
            n, m = one // self.indices.shape[1], two // other.indices.shape[1]
            sums.index_add_(0, n * samples_ + m, products.flatten(1))
        total += sums.view(samples, samples_, len(d), len(e)).permute(2, 0, 3, 1)

    def _lookups(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places of lookups of some entries, and d at all places, (K, N T, width)."""
        places = torch.isin(self.indices.flatten(), entries).nonzero().flatten()
        return places, self.d.flatten(1, 2)

    def _scattered(self, entries: Tensor, columns: slice) -> Tensor:
        """Return the gradients in some entries and columns of the table: (K N, U * columns)."""
        draws, samples, _, width = self.d[..., columns].shape
        places = torch.searchsorted(entries, self.indices.contiguous()).clamp_max(
            max(len(entries) - 1, 0)
        )
        # searchsorted gives every index some place; those of other entries add zero there.
        found = entries[places] == self.indices if len(entries) else places < 0
        kept = self.d[..., columns].double() * found[..., None]
        offsets = torch.arange(samples, device=entries.device)[:, None] * len(entries)
        table = kept.new_zeros(draws, samples * len(entries), width)
        table.index_add_(1, (places + offsets).flatten(), kept.flatten(1, 2))
        return table.view(draws * samples, len(entries) * width)
