"""The natural gradient of a diagonal, projected off what past tasks have learned (FOPNG).

With D = diag(F_new) + lambda I of the batch, gradients G (P, m) and diag(F_old) of past tasks, and
C = F_old G (Garg et al., 2026),

    A = C^T D^-1 C + lambda I,
    v = D^-1 (g - C A^-1 C^T D^-1 g)    as a projection,
    v = D^-1 (g - C A^-1 C^T g)         as the public code has it.

The first is D^-1 P g with P P = P and C^T v = lambda A^-1 C^T D^-1 g, which vanishes with lambda:
the step then changes the past gradients' part of the past outputs to second order alone. The second
drops the last D^-1, and has neither property. Without damping D^-1 and A^-1 are pseudo-inverses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evalkit.curvature.diagonal import Diagonal
from evalkit.curvature.direction import BlockMatrix, Preconditioned, solved
from evalkit.curvature.kronecker import SEEN
from evalkit.curvature.labels import Source
from evalkit.curvature.past import PastTask
from evalkit.curvature.rotated import random_signs
from evalkit.curvature.whole_diagonal import entries, whole_diagonal
from evalkit.factor import factorize_rows
from evalkit.linearization import Linearization

Form = Literal["projection", "published"]

DRAWS = 4
"""Changes of the kind that rounding makes, from which it is told how far a direction moves."""


@dataclass(frozen=True)
class Projected:
    """A direction, and what is left of its constraint.

    Attributes:
        found: v, and what is known of it.
        residual: |C^T v| / |C^T D^-1 g|: 0 where the constraint is met, 1 where nothing is gained
            over the direction that knows no past; 0 where that meets it already.
    """

    found: Preconditioned
    residual: float


def projected(
    lin: Linearization, past: PastTask, damping: float, source: Source, form: Form
) -> Projected:
    """Return v.

    Args:
        lin: the model and batch.
        past: G and diag(F_old).
        damping: lambda; 0 for pseudo-inverses.
        source: where the cotangents of F_new come from.
        form: where the last D^-1 is, or is not.

    Raises:
        EvalkitError: the past is that of another model.
    """
    gradients, fisher = past.of(lin)
    system = _System.of(whole_diagonal(lin, source), gradients * fisher, damping, form)
    solutions = dict(system.matrix.solutions(damping))
    free = entries(system.matrix, {names: one.matrix for names, one in solutions.items()})
    inverse = system.inverse(system.squares)
    v = free - system.correction(lin.gradient.double(), free, inverse)
    plain = solved(system.matrix, solutions, damping)
    moved, slope, deviation = math.inf, math.inf, None
    if math.isfinite(plain.moved):
        changes = [system.change(turn, v) for turn in range(DRAWS)]
        moved = _root_mean_square([float(dv.norm()) for dv, _ in changes])
        moved = max(moved, plain.moved)
        slope = _root_mean_square([along for _, along in changes])
        deviation = lambda: system.change(0, v)[0]  # noqa: E731
    return Projected(
        Preconditioned(v, moved, slope, plain.lost, deviation, system.matrix),
        _residual(system.constraint, v.to(lin.logits.dtype).double(), free, lin.unit),
    )


@dataclass(frozen=True, eq=False)
class _System:
    """What v is solved from.

    Attributes:
        matrix: diag(F_new), by blocks.
        squares: diag(F_new), (P,).
        known: where it is not zero to rounding, (P,).
        constraint: C^T, (m, P).
        damping: lambda.
        form: where the last D^-1 is, or is not.
    """

    matrix: BlockMatrix
    squares: Tensor
    known: Tensor
    constraint: Tensor
    damping: float
    form: Form

    @classmethod
    def of(cls, matrix: BlockMatrix, constraint: Tensor, damping: float, form: Form) -> _System:
        """Return the system of a batch."""
        eps, blocks = torch.finfo(torch.float64).eps, _diagonals(matrix)
        known = {
            names: (s > s.amax((1, 2), keepdim=True) * one.size * eps).double()
            for names, one in blocks.items()
            for s in (one.values,)
        }
        return cls(
            matrix,
            entries(matrix, {names: one.values for names, one in blocks.items()}),
            entries(matrix, known) > 0,
            constraint,
            damping,
            form,
        )

    def inverse(self, squares: Tensor) -> Tensor:
        """Return D^-1 of a diag(F_new), without damping its pseudo-inverse: (P,)."""
        shrunk = squares.where(self.known, 0.0) + self.damping
        return shrunk.reciprocal().where(shrunk > 0, 0.0)

    def correction(self, gradient: Tensor, free: Tensor, inverse: Tensor) -> Tensor:
        """Return D^-1 C A^-1 b, b what the direction without a past has along the constraint.

        Args:
            gradient: g.
            free: D^-1 g.
            inverse: D^-1.
        """
        factor = factorize_rows(self.constraint * inverse.sqrt())
        b = self.constraint @ (free if self.form == "projection" else gradient)
        return inverse * (factor.solve(b, self.damping) @ self.constraint)

    def change(self, turn: int, v: Tensor) -> tuple[Tensor, float]:
        """Return a change of v of the kind that rounding makes, and that of v^T g.

        Entries of g and of diag(F_new) change as they do for the diagonal alone; those that are
        zero in both, as of an input that is always zero, are zero whatever the rounding.

        Args:
            turn: the number of the draw.
            v: the direction.
        """
        generator = torch.Generator().manual_seed(turn)
        lin, blocks = self.matrix.pulled.lin, _diagonals(self.matrix)
        g, s = lin.gradient.double(), self.squares
        some = (s > 0) | (g != 0)
        spread = entries(self.matrix, {n: one.spread for n, one in blocks.items()}).sqrt()
        noise = {n: torch.full_like(one.values, one.noise.gradient) for n, one in blocks.items()}
        far = entries(self.matrix, noise).sqrt()
        s = (s + spread * random_signs(s, generator)).clamp_min(0.0).where(some, 0.0)
        moved = g + (far * random_signs(g, generator)).where(some, 0.0)
        inverse = self.inverse(s)
        free = inverse * moved
        other = free - self.correction(moved, free, inverse)
        return other - v, float(other @ moved - v @ g)


def _diagonals(matrix: BlockMatrix) -> dict[tuple[str, ...], Diagonal]:
    return {names: one for names, one in matrix.blocks.items() if isinstance(one, Diagonal)}


def _residual(constraint: Tensor, v: Tensor, free: Tensor, unit: float) -> float:
    before, size = float((constraint @ free).norm()), float(constraint.norm() * free.norm())
    if before <= SEEN * unit * size:
        return 0.0
    return float((constraint @ v).norm()) / before


def _root_mean_square(values: list[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))
