"""Systems with Kronecker products, (B (x) A + lambda I) vec X = vec G, by two decompositions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evalkit.curvature.eigen import Eigen
from evalkit.curvature.rotated import Rotated
from evalkit.layers.low_rank import LowRank, formed

Style = Literal["tikhonov", "pi", "plain"]

SEEN = 64.0
"""Units of rounding, as parts of a gradient, above which there is something in a direction."""


@dataclass(frozen=True, eq=False)
class Solution:
    """What a block contributes to a direction.

    Attributes:
        solved: X, (groups, out, in), or in bases where it is a product of thin matrices.
        moved: the square of how far rounding is expected to have moved it.
        slope: the square of how far it has moved its part of d^T g.
        lost: the square of the part of G that a pseudo-inverse maps to zero.
        deviation: draws a change of X of the kind that rounding makes, like X; None where X may be
            anything.
        floored: the part of the block's directions along which a floor takes the place of what its
            matrix has there; 0 for blocks without one.
        square: |X|^2, where it is known.
        lengths: of the parts that X is a sum of, where each of these, orthogonal to the others, has
            the same direction at every damping; None where X is not made that way.
    """

    solved: Tensor | Rotated
    moved: float
    slope: float
    lost: float = 0.0
    deviation: Callable[[torch.Generator], Tensor | LowRank] | None = None
    square: float | None = None
    floored: float = 0.0
    lengths: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """X, formed."""
        return formed(self.joined())

    def joined(self) -> Tensor | LowRank:
        """Return X."""
        return self.solved.joined() if isinstance(self.solved, Rotated) else self.solved

    def change(self, generator: torch.Generator) -> Tensor:
        """Return a change of X of the kind that rounding makes, formed."""
        assert self.deviation is not None
        return formed(self.deviation(generator))


@dataclass(frozen=True, eq=False)
class Cut:
    """The inverse of a damped matrix in bases, zero where a gradient has nothing but rounding.

    Attributes:
        inverse: like squares of the gradient.
        hidden: the squares of what is left out of the solution, where few digits hide it.
        slope: the square of what that may be in d^T g.
        lost: the square of the part of the gradient that a pseudo-inverse maps to zero.
    """

    inverse: Tensor
    hidden: Tensor
    slope: float = 0.0
    lost: float = 0.0

    @classmethod
    def of(
        cls,
        squares: Tensor,
        shrunk: Tensor,
        known: Tensor,
        empty: Tensor,
        void: Tensor,
        damping: float,
        unit: float,
        total: Tensor | None = None,
    ) -> Cut:
        """Return the inverse.

        Args:
            squares: of the gradient in the bases.
            shrunk: the damped matrix, on its diagonal.
            known: where the matrix is not zero.
            empty: where it is zero to rounding, and a gradient without rounding would be small.
            void: where both are zero.
            damping: lambda.
            unit: the rounding of the evaluation.
            total: the sum of squares, (groups, 1, 1), where these are a part of them.
        """
        if damping == 0:
            lost = float(squares.where(~known, 0.0).sum())
            inverse = shrunk.reciprocal().where(known, 0.0)
            return cls(inverse, torch.zeros_like(inverse), lost=lost)
        total = squares.sum((1, 2), keepdim=True) if total is None else total
        least = (SEEN * unit) ** 2 * total
        left_out, inverse = void | (empty & (squares <= least)), shrunk.reciprocal()
        coarse = unit > torch.finfo(torch.float64).eps
        hidden = squares.where(left_out & ~void & coarse, 0.0)
        slope = float((hidden * inverse).sum()) ** 2
        return cls(inverse.where(~left_out, 0.0), hidden * inverse.square(), slope)


@dataclass(frozen=True, eq=False)
class Kronecker:
    """A block B (x) A of each group.

    Attributes:
        out: B.
        inside: A.
        within: whether G is known to lie in the range of B and in that of A, so that what is
            outside of them is rounding, whatever the damping.
        gradient: the mean square move of an entry of G by rounding.
        unit: the rounding of the evaluation.
        style: where the damping is added.
    """

    out: Eigen
    inside: Eigen
    within: tuple[bool, bool]
    gradient: float
    unit: float
    style: Style = "tikhonov"

    @property
    def inputs(self) -> Tensor | None:
        """Qa where it is thin and G lies within it."""
        return self.inside.vectors if self.within[1] and self.inside.beside else None

    def rotated(self, gradient: Tensor | LowRank) -> Rotated:
        """Return a gradient, (groups, out, in) float64, in the bases of the block."""
        return Rotated.of(gradient, (self.out.vectors, self.inside.vectors), self.within)

    def solve(self, gradient: Rotated, damping: float) -> Solution:
        """Return X with (B (x) A + lambda I) vec X = vec G, and how far rounding moves it.

        To first order X moves as (B (x) A + lambda I)^-1 (dG - dB X A - B X dA) does.

        Args:
            gradient: G, in the bases.
            damping: lambda; 0 gives B^+ G A^+.
        """
        b, a, shrunk = self._damped(damping)
        known = self.out.kept[:, :, None] & self.inside.kept[:, None, :]
        empty = self._either(~self.out.kept, ~self.inside.kept)
        void = self._either(self.out.void, self.inside.void)
        cut = Cut.of(gradient.squares(), shrunk, known, empty, void, damping, self.unit)
        x = gradient.scaled(cut.inverse)
        if damping == 0 and (self.out.hazy or self.inside.hazy):
            return Solution(x.kept(), math.inf, math.inf, cut.lost)
        squares = x.squares()
        far = self.out.variances @ (squares * a.square())
        far = far + (squares * b.square()) @ self.inside.variances.mT
        far = (far + self.gradient * gradient.entries()) * cut.inverse.square() + cut.hidden
        slope = (x.products(a, 0) * self.out.variances).sum()
        slope = slope + (x.products(b, 1) * self.inside.variances).sum()
        slope = slope + 4 * self.gradient * squares.sum()
        return Solution(
            x.kept(),
            float(far.sum()),
            float(slope) + cut.slope,
            cut.lost,
            lambda generator: x.drawn(far, generator).joined(),
            float(squares.sum()),
            lengths=squares.sqrt(),
        )

    def product(self, x: Tensor) -> Tensor:
        """Return B X A, the undamped block applied to matrices, (..., groups, out, in) float64."""
        (out, b), (inside, a) = (
            (one.vectors, one.values[:, :-1]) for one in (self.out, self.inside)
        )
        inner = (out.mT @ x @ inside) * b[:, :, None] * a[:, None, :]
        return out @ inner @ inside.mT

    def damped_product(self, x: Rotated, damping: float) -> Rotated:
        """Return (B (x) A + lambda I) vec X, damped as the style says, in the bases.

        Args:
            x: X, in the bases.
            damping: lambda.
        """
        return x.scaled(self._damped(damping)[2])

    def trace(self, damping: float) -> Tensor:
        """Return the trace of the damped matrix within its bases, (groups,)."""
        return self._damped(damping)[2].sum((1, 2))

    def _damped(self, damping: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the values of B and A, damped where the style does, and of the damped matrix."""
        b, a = self.out.values[:, :, None], self.inside.values[:, None, :]
        if self.style == "tikhonov" or not damping:
            return b, a, b * a + damping
        left, right = self._added(damping)
        b, a = b + left[:, None, None], a + right[:, None, None]
        return b, a, b * a

    def _either(self, out: Tensor, inside: Tensor) -> Tensor:
        """Return where one of two is true, (groups, rank + 1) each, as far as G is within."""
        return (out & self.within[0])[:, :, None] | (inside & self.within[1])[:, None, :]

    def _added(self, damping: float) -> tuple[Tensor, Tensor]:
        """Return what is added to B and to A, (groups,) each: lambda, or parts of its root.

        With the style ``pi`` these are those of :func:`roots`.
        """
        if self.style == "plain":
            both = torch.full_like(self.out.mean, damping)
            return both, both
        return roots(self.out.mean, self.inside.mean, damping)


def roots(out: Tensor, inside: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return sqrt(lambda) / pi and pi sqrt(lambda), pi^2 = (tr A / in) / (tr B / out): (groups,).

    Args:
        out: tr B / out, (groups,).
        inside: tr A / in.
        damping: lambda.
    """
    pi = (inside / out).sqrt()
    pi = pi.where((pi > 0) & pi.isfinite(), 1.0)
    return math.sqrt(damping) / pi, math.sqrt(damping) * pi
