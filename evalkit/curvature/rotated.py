"""Matrices in two orthonormal bases, which may be thin, and what lies beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evalkit.layers.low_rank import LowRank
from evalkit.signs import random_signs

THIN = 0.5
"""Part of a matrix's numbers up to which it is better kept as two factors."""


@dataclass(frozen=True, eq=False)
class Rotated:
    """A matrix X of each group in two orthonormal bases, and what lies beside them.

    X = Qb x Qa^T + right Qa^T + Qb below + corner, where Qb^T right = 0, below Qa = 0, and the
    corner is orthogonal to both. What is zero, as there is nothing beside a basis, is None.

    Attributes:
        pending: what the other three are yet to be multiplied by, like :meth:`squares`.
        known: :meth:`squares`.
    """

    bases: tuple[Tensor, Tensor]
    inner: Tensor
    right: Tensor | None
    below: Tensor | None
    corner: Tensor | None
    pending: Tensor | None = None
    known: Tensor | None = None

    @classmethod
    def of(
        cls,
        matrix: Tensor | LowRank,
        bases: tuple[Tensor, Tensor],
        within: tuple[bool, bool],
    ) -> Rotated:
        """Return a matrix in two bases.

        Args:
            matrix: (groups, out, in); one of low rank has the basis Qa on its right.
            bases: Qb and Qa.
            within: whether the matrix is zero beside each of them.
        """
        out, inside = bases
        thin = [
            basis.shape[2] < basis.shape[1] and not known
            for basis, known in zip(bases, within, strict=True)
        ]
        if isinstance(matrix, LowRank):
            if matrix.right is inside and not thin[1]:
                inner = out.mT @ matrix.left
                right = matrix.left - out @ inner if thin[0] else None
                return cls(bases, inner, right, None, None)
            matrix = matrix.formed()
        across = matrix @ inside
        inner = out.mT @ across
        right = across - out @ inner if thin[0] else None
        left = out.mT @ matrix if thin[1] else None
        below = None if left is None else left - inner @ inside.mT
        corner = None
        if thin[0] and left is not None:
            corner = matrix - out @ left
            corner = corner - (corner @ inside) @ inside.mT
        return cls((out, inside), inner, right, below, corner)

    def scaled(self, factors: Tensor) -> Rotated:
        """Return it with every entry multiplied: by factors (groups, rank + 1, rank + 1)."""
        return replace(
            self,
            inner=self.inner * factors[:, :-1, :-1],
            pending=factors if self.pending is None else factors * self.pending,
            known=self.squares() * factors.square(),
        )

    @property
    def thin(self) -> bool:
        """Whether it is a product of thin matrices."""
        (out, inside), rank = (basis.shape[1] for basis in self.bases), self.bases[1].shape[2]
        if self.below is not None or self.corner is not None:
            return False
        return rank * (out + inside) <= THIN * out * inside

    def dot(self, other: Rotated) -> Tensor:
        """Return the inner product with a matrix in the same bases, (groups,)."""
        total = (self.inner * other.inner).sum((1, 2))
        for own, its in zip(self.beside, other.beside, strict=True):
            if own is not None and its is not None:
                total = total + (own * its).sum((1, 2))
        return total

    def plus(self, other: Rotated, factors: Tensor) -> Rotated:
        """Return the sum with another matrix in the same bases times factors, (groups,)."""
        f = factors[:, None, None]
        beside = (
            None if own is None or its is None else own + f * its
            for own, its in zip(self.beside, other.beside, strict=True)
        )
        return Rotated(self.bases, self.inner + f * other.inner, *beside)

    @property
    def beside(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What lies beside the bases, multiplied by what is pending: right, below and corner."""
        parts, f = (self.right, self.below, self.corner), self.pending
        if f is None:
            return parts
        places = f[:, -1:, :-1], f[:, :-1, -1:], f[:, -1:, -1:]
        right, below, corner = (
            None if part is None else part * place
            for part, place in zip(parts, places, strict=True)
        )
        return right, below, corner

    def drawn(self, squares: Tensor, generator: torch.Generator) -> Rotated:
        """Return a matrix whose entries have random signs and given squares, as :meth:`squares`.

        What lies beside a basis is spread over all entries there.
        """
        sizes = self.bases[0].shape[1], self.bases[1].shape[1]
        last, column, corner = squares[:, -1:, :-1], squares[:, :-1, -1:], squares[:, -1:, -1:]
        parts = (
            (self.inner, squares[:, :-1, :-1]),
            (self.right, last / sizes[0]),
            (self.below, column / sizes[1]),
            (self.corner, corner / (sizes[0] * sizes[1])),
        )
        inner, *beside = (
            None if like is None else random_signs(like.shape, generator, like) * square.sqrt()
            for like, square in parts
        )
        assert inner is not None
        return Rotated(self.bases, inner, *beside)

    def squares(self) -> Tensor:
        """Return the squares of entries, what lies beside a basis summed: like factors."""
        if self.known is not None:
            return self.known
        inner = self.inner.square()
        zero = [torch.zeros_like(inner[:, :1]), torch.zeros_like(inner[:, :, :1])]
        last = zero[0] if self.right is None else self.right.square().sum(1, keepdim=True)
        column = zero[1] if self.below is None else self.below.square().sum(2, keepdim=True)
        corner = torch.zeros_like(inner[:, :1, :1])
        if self.corner is not None:
            corner = self.corner.square().sum((1, 2), keepdim=True)
        return torch.cat([torch.cat([inner, column], 2), torch.cat([last, corner], 2)], 1)

    def entries(self) -> Tensor:
        """Return how many entries each of :meth:`squares` is a sum of: (rank + 1, rank + 1)."""
        sizes = []
        for basis in self.bases:
            one = basis.new_ones(basis.shape[2] + 1)
            one[-1] = basis.shape[1] - basis.shape[2]
            sizes.append(one)
        return torch.outer(*sizes)

    def products(self, weights: Tensor, axis: int) -> Tensor:
        """Return squares of X diag(w) X^T, or of X^T diag(w) X for axis 1.

        Beside a basis they are bounded by the product of the diagonal entries.

        Args:
            weights: w, broadcast against factors along the other axis.
            axis: 0 or 1.
        """
        x, w = self.inner, weights[..., :-1] if axis == 0 else weights[:, :-1]
        inner = (x * w) @ x.mT if axis == 0 else x.mT @ (x * w)
        diagonal = (self.squares() * weights).sum(2 - axis)
        found = diagonal[:, :, None] * diagonal[:, None, :]
        found[:, :-1, :-1] = inner.square()
        return found

    def kept(self) -> Tensor | Rotated:
        """Return it as it is where that takes less than X."""
        if self.thin:
            return self
        whole = self.joined()
        assert isinstance(whole, Tensor)
        return whole

    def joined(self) -> Tensor | LowRank:
        """Return X, (groups, out, in), as a product where Qa is thin and holds its rows."""
        out, inside = self.bases
        right, below, corner = self.beside
        across = out @ self.inner
        if right is not None:
            across = across + right
        if self.thin:
            return LowRank(across, inside)
        whole = across @ inside.mT
        if below is not None:
            whole = whole + out @ below
        return whole if corner is None else whole + corner
