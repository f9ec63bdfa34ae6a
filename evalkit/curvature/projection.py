"""The natural gradient of a diagonal, projected off what past tasks have learned (FOPNG).

With D = diag(F_new) + lambda I of the batch, gradients G (P, m) and diag(F_old) of past tasks, and
C = F_old G (Garg et al., 2026),

    A = C^T D^-1 C + lambda I,
    v = D^-1 (g - C A^-1 C^T D^-1 g)    as a projection,
    v = D^-1 (g - C A^-1 C^T g)         as the public code has it.

The first has C^T v = lambda A^-1 C^T D^-1 g, which vanishes with lambda, and is then D^-1 P g with
P P = P. The second drops the last D^-1, and has neither property. Without damping D^-1 and A^-1 are
pseudo-inverses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evalkit.curvature.direction import BlockMatrix, Preconditioned, solved
from evalkit.curvature.kronecker import SEEN
from evalkit.curvature.labels import Source
from evalkit.curvature.past import PastTask
from evalkit.curvature.whole_diagonal import diagonals, entries, whole_diagonal
from evalkit.factor import GramFactor
from evalkit.factorization import factorize_rows
from evalkit.linearization import Linearization
from evalkit.signs import random_signs

Form = Literal["projection", "published"]


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
    matrix, constraint = whole_diagonal(lin, source), gradients.mul_(fisher)
    solutions = dict(matrix.solutions(damping))
    free = entries(matrix, {names: one.matrix for names, one in solutions.items()})
    gradient, inverse = lin.gradient.double(), _inverse(matrix, damping)
    factor = factorize_rows(constraint * inverse.sqrt())
    right = constraint @ (free if form == "projection" else gradient)
    weights = factor.solve(right, damping)
    v = free - inverse * (weights @ constraint)
    plain = solved(matrix, solutions, damping)
    moved, slope, change = math.inf, math.inf, None
    if math.isfinite(plain.moved):
        change, slope = _rounding(
            _System(matrix, constraint, free, inverse, factor, weights, v, damping, form)
        )
        moved = max(plain.moved, float(change.norm()))
    return Projected(
        Preconditioned(
            v, moved, slope, plain.lost, None if change is None else lambda: change, matrix
        ),
        _residual(constraint, v.to(lin.logits.dtype).double(), free, lin.unit),
    )


@dataclass(frozen=True, eq=False)
class _System:
    """What v was solved from.

    Attributes:
        matrix: diag(F_new), by blocks.
        constraint: C^T, (m, P).
        free: D^-1 g, (P,).
        inverse: D^-1, (P,).
        factor: of C^T D^-1 C.
        weights: a, with v = D^-1 (g - C a).
        v: the direction.
        damping: lambda.
        form: where the last D^-1 is, or is not.
    """

    matrix: BlockMatrix
    constraint: Tensor
    free: Tensor
    inverse: Tensor
    factor: GramFactor
    weights: Tensor
    v: Tensor
    damping: float
    form: Form

    def along(self, vector: Tensor) -> Tensor:
        """Return C A^-1 C^T x of a vector x."""
        return self.factor.solve(self.constraint @ vector, self.damping) @ self.constraint

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the root mean square moves of the entries of diag(F_new) and of those of g.

        Entries that are both zero, as of an input that is always zero, are zero whatever the
        rounding.
        """
        matrix, blocks = self.matrix, diagonals(self.matrix)
        some = entries(matrix, {names: one.values for names, one in blocks.items()}) > 0
        some |= matrix.pulled.lin.gradient != 0
        spread = {names: one.spread(one.values).sqrt() for names, one in blocks.items()}
        far = {
            names: torch.full_like(one.values, one.noise.gradient**0.5)
            for names, one in blocks.items()
        }
        first, second = (entries(matrix, one).where(some, 0.0) for one in (spread, far))
        return first, second


def _rounding(system: _System) -> tuple[Tensor, float]:
    """Return a change of v of the kind that rounding makes, and how far v^T g moves.

    Where g and the entries of diag(F_new) change by dg and ds, v changes to first order by

        D^-1 (h - C A^-1 C^T x) with h = dg - ds v,

    x = D^-1 h, and x = dg + D^-2 ds C a in the published form; v^T g changes by dg^T p - ds^T q.

    Args:
        system: what v was solved from.
    """
    v, inverse = system.v, system.inverse
    spread, far = system.moments()
    generator = torch.Generator().manual_seed(0)
    ds = spread * random_signs(spread.shape, generator, spread)
    dg = far * random_signs(far.shape, generator, far)
    h = dg - ds * v
    if system.form == "projection":
        change, p, q = system.along(inverse * h), 2 * v, v.square()
    else:
        pulled = inverse.square() * (system.weights @ system.constraint)
        change, back = system.along(dg + ds * pulled), system.along(system.free)
        p, q = system.free - back + v, v * system.free + pulled * back
    slope = math.hypot(float((far * p).norm()), float((spread * q).norm()))
    return (inverse * (h - change)).to(system.matrix.pulled.lin.logits.dtype), slope


def _inverse(matrix: BlockMatrix, damping: float) -> Tensor:
    """Return D^-1, without damping its pseudo-inverse: (P,)."""
    eps, found = torch.finfo(torch.float64).eps, {}
    for names, one in diagonals(matrix).items():
        s = one.values
        shrunk = s.where(s > s.amax((1, 2), keepdim=True) * one.size * eps, 0.0) + damping
        found[names] = shrunk.reciprocal().where(shrunk > 0, 0.0)
    return entries(matrix, found)


def _residual(constraint: Tensor, v: Tensor, free: Tensor, unit: float) -> float:
    before, size = float((constraint @ free).norm()), float(constraint.norm() * free.norm())
    if before <= SEEN * unit * size:
        return 0.0
    return float((constraint @ v).norm()) / before
