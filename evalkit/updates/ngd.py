"""The exact natural gradient."""

from __future__ import annotations

from collections.abc import Callable

from evalkit.linearization import Linearization
from evalkit.solvers import (
    FLOOR_TOLERANCE,
    MAX_ITERATIONS,
    TOLERANCE,
    Choice,
    Stopping,
    solve,
)
from evalkit.updates.registry import method
from evalkit.updates.types import CotangentUpdate, SolverReport, Update, VectorUpdate


@method("ngd")
def ngd(
    lin: Linearization,
    damping: float,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = TOLERANCE,
    floor_tolerance: float = FLOOR_TOLERANCE,
    solver: Choice = "auto",
    on_iteration: Callable[[int, float], None] | None = None,
) -> Update:
    """Exact natural gradient: d = (F + lambda I)^-1 g (paper, eq. 51), by CG or in logit space.

    ``solver`` is ``"cg"`` (Algorithm 5), ``"sketch"``, the same preconditioned by a sketch of the
    tangent kernel, ``"direct"``, or ``"auto"``: the one that is expected to take the least
    time.
    """
    stopping = Stopping(max_iterations, tolerance, floor_tolerance)
    result = solve(lin, damping, stopping, solver, on_iteration)
    report = SolverReport(
        solver=result.solver,
        iterations=result.iterations,
        relative_residual=result.relative_residual,
        converged=result.converged,
        error=result.error,
        # More digits say no more of eigenvalues that CG has not met within its tolerance.
        curable=result.status != "iteration limit"
        and (result.solver == "direct" or result.status != "residual"),
    )
    if result.vector is not None:
        return VectorUpdate(result.vector, report)
    assert result.cotangents is not None
    return CotangentUpdate(result.cotangents, report=report)
