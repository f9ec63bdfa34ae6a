"""The exact natural gradient."""

from __future__ import annotations

from evalkit.cg import natural_gradient
from evalkit.linearization import Linearization
from evalkit.updates.registry import Update, method


@method("ngd")
def ngd(
    lin: Linearization,
    damping: float,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
    floor_tolerance: float = 0.0,
) -> Update:
    """Exact natural gradient: d = (F + lambda I)^-1 g by linear CG (paper, eq. 51, Algorithm 5)."""
    result = natural_gradient(lin, damping, max_iterations, tolerance, floor_tolerance)
    return Update(
        cotangents=result.cotangents,
        iterations=result.iterations,
        relative_residual=result.relative_residual,
        converged=result.converged,
    )
