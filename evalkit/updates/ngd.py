"""The exact natural gradient."""

from __future__ import annotations

from collections.abc import Callable

from evalkit.cg import solve_by_cg
from evalkit.direct import solve_directly
from evalkit.errors import EvalkitError
from evalkit.linearization import Linearization
from evalkit.updates.registry import Update, method

SOLVERS = ("auto", "cg", "direct")
ITERATIONS_TO_FLOOR = 20
"""What CG takes to come within percents of the floor: 5 to 23 on the benchmark's models."""


@method("ngd")
def ngd(
    lin: Linearization,
    damping: float,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
    floor_tolerance: float = 0.0,
    solver: str = "auto",
    on_iteration: Callable[[int, float], None] | None = None,
) -> Update:
    """Exact natural gradient: d = (F + lambda I)^-1 g (paper, eq. 51), by CG or in logit space.

    ``solver`` is ``"cg"`` (Algorithm 5), ``"direct"``, or ``"auto"``: direct where forming and
    factorising J J^T takes fewer multiplications than the iterations that CG may take.
    """
    if solver not in SOLVERS:
        raise EvalkitError(
            f"expected setting 'solver' of method 'ngd' to be one of {', '.join(SOLVERS)}, found "
            f"'{solver}'; leave it out for the cheaper one"
        )
    size = lin.logits.numel()
    expected = min(max_iterations, ITERATIONS_TO_FLOOR) if floor_tolerance > 0 else max_iterations
    if solver == "direct" or (
        solver == "auto" and lin.kernel_pays(expected, extra=size**3 / 3 + 4 * size**2)
    ):
        result = solve_directly(lin, damping, tolerance)
    else:
        result = solve_by_cg(lin, damping, max_iterations, tolerance, floor_tolerance, on_iteration)
    return Update(
        cotangents=result.cotangents,
        iterations=result.iterations,
        relative_residual=result.relative_residual,
        converged=result.converged,
        solver=result.solver,
    )
