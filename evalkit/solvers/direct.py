"""The exact natural gradient by a direct solve in logit space, where that space is small."""

from __future__ import annotations

import torch

from evalkit.linearization import Linearization
from evalkit.reductions import norm
from evalkit.settings import check_damping
from evalkit.solvers.logit_space import LogitSpace
from evalkit.solvers.solved import Solved

REFINEMENTS = 4
"""Solves with the recomputed residual, at most."""


def solve_directly(lin: Linearization, damping: float, tolerance: float) -> Solved:
    """Solve (F + lambda I) x = g in logit space, with the matrix of :class:`LogitSpace`.

    The residual is recomputed from x with products of the model's graph, and solved for while that
    lowers it.

    Args:
        lin: the model and batch; J J^T and H are computed once for all dampings.
        damping: lambda >= 0; 0 gives the pseudo-inverse.
        tolerance: converged when |g - (F + lambda I) x| <= tolerance |g|.

    Raises:
        EvalkitError: the damping is out of range.
    """
    damping = check_damping(damping)
    space = lin.shared("logit space", lambda: LogitSpace(lin, lin.tangent_kernel))
    solve = lin.shared(("logit space", damping), lambda: space.solver(damping))
    y = torch.zeros_like(lin.logit_gradients)
    iterations = 0
    x, residual, remaining = lin.vjp(y), lin.logit_gradients, lin.gradient_norm
    for _ in range(REFINEMENTS):
        if remaining <= tolerance * lin.gradient_norm:
            break
        iterations += 1
        refined = y + solve(residual)
        vector = lin.vjp(refined)
        left = lin.logit_gradients - lin.output_fisher(lin.jvp(vector)) - damping * refined
        length = norm(lin.vjp(left))
        if not length < remaining:
            break
        y, x, residual, remaining = refined, vector, left, length
    relative = remaining / lin.gradient_norm if lin.gradient_norm > 0 else 0.0
    converged = relative <= tolerance
    return Solved(
        cotangents=y,
        vector=x,
        solver="direct",
        iterations=iterations,
        converged=converged,
        relative_residual=relative,
        gammas=(),
        gamma_floor=lin.gamma_floor,
        status="residual" if converged else "breakdown",
    )
