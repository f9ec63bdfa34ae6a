"""What a solver of (F + lambda I) x = g returns: answer, status and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evalkit.linearization import Linearization
from evalkit.notebooks import facts_html

SHORT = 1e-3
"""Part of the quadratic model's depth that may be lost to rounding before another way is tried."""

Solver = Literal["cg", "sketch", "direct"]
Status = Literal["residual", "floor", "iteration limit", "breakdown"]


@dataclass(frozen=True, eq=False)
class Solved:
    """A solution x of (F + lambda I) x = g, and how far it can be trusted.

    Attributes:
        cotangents: y with x = J^T y, like logits, float64; None where x is known by itself.
        vector: x, (P,), where it is known by itself.
        solver: ``"cg"``, ``"sketch"`` for CG preconditioned by a sketch of the tangent kernel, or
            ``"direct"`` for the solve in logit space.
        iterations: those of CG; of the direct solver, solves with a recomputed residual.
        converged: whether one of the two tolerances was met.
        relative_residual: |g - (F + lambda I) x| / |g|, recomputed from the solution.
        gammas: gamma of each iterate; without damping they fall (paper, appendix F.2).
        gamma_floor: the bound below which no gamma can be; ``gammas[-1] / gamma_floor`` certifies
            the distance to the optimum.
        status: why the solver stopped: ``"residual"`` (tolerance met), ``"floor"`` (gamma within
            ``floor_tolerance`` of the floor), ``"iteration limit"``, or ``"breakdown"`` (rounding
            keeps the residual from falling further).
        error: estimate of the relative error of gamma that the solver leaves.
    """

    cotangents: Tensor | None
    vector: Tensor | None
    solver: Solver
    iterations: int
    converged: bool
    relative_residual: float
    gammas: tuple[float, ...]
    gamma_floor: float
    status: Status
    error: float

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        last = self.gammas[-1] if self.gammas else None
        facts = {
            "solver": self.solver,
            "iterations": self.iterations,
            "converged": self.converged,
            "stopped by": self.status,
            "relative residual": self.relative_residual,
            "gamma": last,
            "gamma floor": self.gamma_floor,
            "error of gamma": self.error,
        }
        return facts_html("Solution of (F + λI) x = g", facts)


@dataclass(frozen=True, eq=False)
class NaturalGradient(Solved):
    """A solution with its vector formed.

    Attributes:
        solution: x, (P,).
    """

    solution: Tensor


def formed(lin: Linearization, solved: Solved) -> NaturalGradient:
    """Return the record with the solution as a vector of parameters."""
    vector = solved.vector
    if vector is None:
        assert solved.cotangents is not None
        vector = lin.vjp(solved.cotangents)
    return NaturalGradient(**vars(solved), solution=vector)


def rounding(lin: Linearization) -> float:
    """Return the part of the quadratic model's depth that solvers cannot tell from rounding."""
    return torch.finfo(lin.logits.dtype).eps ** 0.5
