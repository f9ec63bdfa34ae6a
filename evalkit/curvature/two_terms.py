"""Systems with two Kronecker products, B1 (x) A1 + B2 (x) A2, damped and floored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.curvature.kronecker import Cut, Solution, roots
from evalkit.curvature.rotated import Rotated

DRAWS = 4
"""Of a change of the right side, whose images tell how far rounding moves a solution."""

Variances = tuple[Tensor, Tensor]
"""Mean squares of what rounding adds to B and to A, like those of Eigen."""


@dataclass(frozen=True, eq=False)
class Side:
    """The factors of one side, B1 and B2 or A1 and A2, in eigenvectors Q of the first.

    Attributes:
        vectors: Q, (groups, size, rank) with orthonormal columns; both are zero beside them.
        values: of the first, and 0 for what is beside Q: (groups, rank + 1).
        second: Q^T B2 Q, (groups, rank, rank) symmetric.
        kept: where rows have anything but rounding, like values.
        variances: the mean squares of what rounding adds to both, as those of
            :class:`evalkit.curvature.eigen.Eigen`.
    """

    vectors: Tensor
    values: Tensor
    second: Tensor
    kept: Tensor
    variances: Variances

    @property
    def mean(self) -> Tensor:
        """The trace of the first / size, (groups,)."""
        return self.values.sum(1) / self.vectors.shape[1]


@dataclass(frozen=True, eq=False)
class TwoTerms:
    """A block B1 (x) A1 + B2 (x) A2 of each group, the second term symmetric.

    With L = B1 + sqrt(lambda) / pi I and M = A1 + pi sqrt(lambda) I, pi that of B1 and A1, and
    eigenvectors V_b and b of L^-1/2 B2 L^-1/2, V_a and a of M^-1/2 A2 M^-1/2, a solution is

        X = L^-1/2 V_b [(V_b^T L^-1/2 G M^-1/2 V_a) / max(1 + b a^T, floor)] V_a^T M^-1/2.

    Attributes:
        out: B1 and B2.
        inside: A1 and A2.
        within: whether G is known to be zero beside the vectors of each side, up to rounding.
        gradient: the mean square move of an entry of G by rounding.
        unit: the rounding of the evaluation.
        floor: the least that the second term leaves of the first.
    """

    out: Side
    inside: Side
    within: tuple[bool, bool]
    gradient: float
    unit: float
    floor: float

    def rotated(self, gradient: Tensor) -> Rotated:
        """Return a gradient, (groups, out, in) float64, in the bases of the block."""
        return Rotated.of(gradient, (self.out.vectors, self.inside.vectors), self.within)

    def product(self, x: Tensor) -> Tensor:
        """Return B1 X A1 + B2 X A2, without damping and floor, for X, (groups, out, in)."""
        b, a = self.out, self.inside
        inner = b.vectors.mT @ x @ a.vectors
        first = b.values[:, :-1, None] * inner * a.values[:, None, :-1]
        return b.vectors @ (first + b.second @ inner @ a.second) @ a.vectors.mT

    def solve(self, gradient: Rotated, damping: float) -> Solution:
        """Return X, how far rounding moves it, and the part of its directions that is floored.

        To first order X moves as the inverse of the matrix takes dG - dM X, dM the change of the
        matrix. Where one of two directions is floored and the other is not, a change of L or M that
        mixes them moves X by as much more as the floor is below what it takes the place of.

        Args:
            gradient: G, in the bases.
            damping: lambda > 0.
        """
        damped = _Damped.of(self, damping)
        known = self.out.kept[:, :, None] & self.inside.kept[:, None, :]
        empty, void = self._empty(), self._beside(known)
        squares = gradient.squares()
        cut = Cut.of(squares, damped.lefts * damped.rights, known, empty, void, damping, self.unit)
        seen = cut.inverse > 0
        told = gradient.scaled(seen.to(squares))
        matrix = damped.solve(told)
        spread = (self._spread(matrix, damped, True) + self.gradient * gradient.entries()) * seen
        mixed = damped.mixed(told)

        def deviation(generator: torch.Generator) -> Rotated:
            change = damped.solve(gradient.drawn(spread, generator))
            for part, weights in mixed:
                drawn = gradient.drawn(self._spread(part, damped, False) * seen, generator)
                change = _sum(change, damped.solve(drawn, weights))
            return change

        generator = torch.Generator().manual_seed(0)
        far = [float(deviation(generator).squares().sum()) for _ in range(DRAWS)]
        slope = self._slope(matrix, damped) + 4 * self.gradient * float(matrix.squares().sum())
        if mixed:
            slope += self._mixed_slope(mixed[0][0], mixed[1][0], damped)
        return Solution(
            matrix.kept(),
            sum(far) / DRAWS + float(cut.hidden.sum()),
            slope + cut.slope,
            deviation=lambda generator: deviation(generator).joined(),
            floored=damped.share(gradient.entries()),
        )

    def _empty(self) -> Tensor:
        """Return where G is within the ranges, and the matrix is rounding."""
        out, inside = ~self.out.kept & self.within[0], ~self.inside.kept & self.within[1]
        return out[:, :, None] | inside[:, None, :]

    def _beside(self, like: Tensor) -> Tensor:
        """Return where G is zero, beside the bases."""
        found = torch.zeros_like(like)
        found[:, -1] |= self.within[0]
        found[:, :, -1] |= self.within[1]
        return found

    def _spread(self, x: Rotated, damped: _Damped, both: bool) -> Tensor:
        """Return mean squares of dM X, like squares: of both terms, or of L (x) M alone."""
        (b1, b2), (a1, a2) = self.out.variances, self.inside.variances
        found = b1 @ x.scaled(damped.rights).squares()
        found = found + x.scaled(damped.lefts).squares() @ a1.mT
        if both and damped.corrected:
            found = found + b2 @ _times(x, None, self.inside.second).squares()
            found = found + _times(x, self.out.second, None).squares() @ a2.mT
        return found

    def _slope(self, x: Rotated, damped: _Damped) -> float:
        """Return the mean square of X . dM X."""
        (b1, b2), (a1, a2) = self.out.variances, self.inside.variances
        total = (b1 * _products(x, x.scaled(damped.rights), 0)).sum()
        total = total + (a1 * _products(x, x.scaled(damped.lefts), 1)).sum()
        if damped.corrected:
            total = total + (b2 * _products(x, _times(x, None, self.inside.second), 0)).sum()
            total = total + (a2 * _products(x, _times(x, self.out.second, None), 1)).sum()
        return float(total)

    def _mixed_slope(self, x: Rotated, y: Rotated, damped: _Damped) -> float:
        """Return what parts that are and are not floored add to it."""
        b, a = self.out.variances[0], self.inside.variances[0]
        total = (b * _products(x, y.scaled(damped.rights), 0)).sum()
        total = total + (a * _products(x, y.scaled(damped.lefts), 1)).sum()
        return 4 * float(total)


@dataclass(frozen=True, eq=False)
class _Damped:
    """L and M, decomposed together with B2 and A2.

    Attributes:
        left: the eigenvalues of L, (groups, rank + 1).
        right: those of M.
        turns: V_b and V_a.
        known: 1 + b a^T, (groups, out rank, in rank).
        floor: the least of it.
        corrected: whether there is a second term.
    """

    left: Tensor
    right: Tensor
    turns: tuple[Tensor, Tensor]
    known: Tensor
    floor: float
    corrected: bool

    @classmethod
    def of(cls, block: TwoTerms, damping: float) -> _Damped:
        """Return them for a damping."""
        added = roots(block.out.mean, block.inside.mean, damping)
        sides = block.out, block.inside
        left, right = (side.values + one[:, None] for side, one in zip(sides, added, strict=True))
        corrected = bool(block.out.second.any())
        values, turns = [], []
        for side, own in ((block.out, left), (block.inside, right)):
            scale = own[:, :-1].rsqrt()
            found, vectors = torch.linalg.eigh(scale[:, :, None] * side.second * scale[:, None, :])
            values.append(found)
            turns.append(vectors)
        known = 1 + values[0][:, :, None] * values[1][:, None, :]
        return cls(left, right, (turns[0], turns[1]), known, block.floor, corrected)

    @property
    def lefts(self) -> Tensor:
        """The eigenvalues of L as factors of the entries of X, (groups, rank + 1, rank + 1)."""
        return self.left[:, :, None].expand(-1, -1, self.right.shape[1])

    @property
    def rights(self) -> Tensor:
        """Those of M."""
        return self.right[:, None, :].expand(-1, self.left.shape[1], -1)

    @property
    def floored(self) -> Tensor:
        """Where the floor takes the place of 1 + b a^T."""
        return self.known < self.floor

    def share(self, entries: Tensor) -> float:
        """Return the part of all directions that is floored.

        Args:
            entries: as :meth:`Rotated.entries`.
        """
        low = torch.nn.functional.pad(self.known, (0, 1, 0, 1), value=1.0) < self.floor
        return float((low * entries).sum() / (len(low) * entries.sum()))

    def solve(self, x: Rotated, weights: Tensor | None = None) -> Rotated:
        """Return the inverse of the matrix times X.

        Args:
            x: X.
            weights: take the place of 1 / max(1 + b a^T, floor), and what is beside the bases is
                left out.
        """
        beside = 1 / max(1.0, self.floor) if weights is None else 0.0
        if weights is None:
            weights = self.known.clamp_min(self.floor).reciprocal()
        scale = (self.lefts * self.rights).rsqrt()
        x = x.scaled(scale)
        out, inside = self.turns
        inner = out @ (weights * (out.mT @ x.inner @ inside)) @ inside.mT
        others = [None if one is None else beside * one for one in x.beside]
        return Rotated(x.bases, inner, *others).scaled(scale)

    def mixed(self, gradient: Rotated) -> list[tuple[Rotated, Tensor]]:
        """Return parts of X that changes of L and M carry across the floor, with weights to solve.

        With m = max(1 + b a^T, floor), what is floored goes to where nothing is, by at most
        1 + 1 / m; and what is not goes to where the floor is, by at most max(1, m) / floor.
        """
        low = self.floored
        if not low.any():
            return []
        m = self.known.clamp_min(self.floor)
        inverse, high = m.reciprocal(), ~low
        return [
            (self.solve(gradient, low * inverse), high * (1 + inverse)),
            (self.solve(gradient, high * inverse * m.clamp_min(1.0)), low * inverse),
        ]


def _times(x: Rotated, left: Tensor | None, right: Tensor | None) -> Rotated:
    """Return left X right, of matrices that are zero beside the bases; None leaves X as it is."""

    def product(part: Tensor | None, first: Tensor | None, last: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        part = part if first is None else first @ part
        return part if last is None else part @ last

    inner, (beside, below, corner) = product(x.inner, left, right), x.beside
    assert inner is not None
    return Rotated(
        x.bases,
        inner,
        product(beside, None, right) if left is None else None,
        product(below, left, None) if right is None else None,
        corner if left is None and right is None else None,
    )


def _products(x: Rotated, y: Rotated, axis: int) -> Tensor:
    """Return squares of X Y^T, or of X^T Y for axis 1; beside a basis what bounds them."""
    found = x.squares().sum(2 - axis)[:, :, None] * y.squares().sum(2 - axis)[:, None, :]
    if axis == 0:
        inner, beside = x.inner @ y.inner.mT, (x.beside[1], y.beside[1])
    else:
        inner, beside = x.inner.mT @ y.inner, (x.beside[0], y.beside[0])
    if beside[0] is not None and beside[1] is not None:
        inner = inner + (beside[0] @ beside[1].mT if axis == 0 else beside[0].mT @ beside[1])
    found[:, :-1, :-1] = inner.square()
    return found


def _sum(x: Rotated, y: Rotated) -> Rotated:
    """Return X + Y, in the same bases and with the same parts."""

    def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        return one if one is None or other is None else one + other

    return Rotated(
        x.bases,
        x.inner + y.inner,
        *(both(one, other) for one, other in zip(x.beside, y.beside, strict=True)),
    )
