"""The exact natural gradient by the solver that costs least."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, get_args

from evalkit.doubts import MARKED
from evalkit.errors import EvalkitError
from evalkit.evaluation.failures import range_failures
from evalkit.indicator import indicator
from evalkit.layers.sketches import SIZE
from evalkit.linearization import Linearization
from evalkit.solvers.cg import solve_by_cg
from evalkit.solvers.direct import solve_directly
from evalkit.solvers.preconditioners import Preconditioner
from evalkit.solvers.solved import NaturalGradient, Solved, Solver, formed
from evalkit.solvers.stopping import FLOOR_TOLERANCE, MAX_ITERATIONS, TOLERANCE, Stopping
from evalkit.solvers.system import OnIteration
from evalkit.work import (
    Rates,
    Work,
    factor_work,
    kernel_work,
    machine_rates,
    product_work,
    sketch_work,
    solve_work,
)

Choice = Solver | Literal["auto"]
CHOICES: tuple[Choice, ...] = ("auto", *get_args(Solver))
SLOWER_THAN_PREDICTED = 1.5
"""Iterations that CG takes over those of :func:`expected_iterations`: 0.8 to 2 on the benchmark's
models, a condition number being estimated from below."""

WORTH_OF_EXACT = 2.0
"""Times as long as the fastest solver that an exact solution may take, as far as time is foreseen:
rates are rounded, and the condition number that CG meets is estimated from below."""

DIRECT_SOLVES = 3
"""Solves of a direct solve, its corrections included, with about two products each."""

ITERATION_CALLS = 450
"""Small operations of an iteration of CG beside its product."""

REACHED = 100.0
"""Units of rounding that CG's residual is expected to reach, as a part of the gradient's length: a
smaller tolerance lets it run to its limit."""

GAIN_WITH_SKETCH = 10.0
"""What an iteration with the sketch divides the error of 1 / gamma^2 by."""


def natural_gradient(
    lin: Linearization,
    damping: float = 0.0,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = TOLERANCE,
    floor_tolerance: float = FLOOR_TOLERANCE,
    on_iteration: OnIteration | None = None,
    preconditioner: Preconditioner | None = None,
    solver: Choice = "cg",
) -> NaturalGradient:
    """Return (F + lambda I)^-1 g, by default by linear CG (paper, Algorithm 5).

    Args:
        lin: the model and batch.
        damping: lambda >= 0.
        max_iterations: the most iterations of CG.
        tolerance: stop when the residual is at most this times |g|.
        floor_tolerance: stop when gamma <= (1 + floor_tolerance) gamma_floor; 0 leaves it out.
        on_iteration: called with each iteration of CG and its gamma.
        preconditioner: M^-1 of plain CG, as :func:`evalkit.solvers.cg.solve_by_cg` takes it.
        solver: ``"cg"``; ``"sketch"``, CG preconditioned by a sketch of the tangent kernel;
            ``"direct"``, a solve in logit space; or ``"auto"``, the cheapest of these.

    Raises:
        EvalkitError: a setting is out of range, or there is no such solver.
    """
    if preconditioner is not None and solver != "cg":
        raise EvalkitError(
            f"expected solver 'cg' with a preconditioner, found '{solver}'; leave one of them out"
        )
    stopping = Stopping(max_iterations, tolerance, floor_tolerance)
    with range_failures():
        found = solve(lin, damping, stopping, solver, on_iteration, preconditioner, form=True)
        return formed(lin, found)


def solve(
    lin: Linearization,
    damping: float,
    stopping: Stopping,
    solver: Choice,
    on_iteration: OnIteration | None = None,
    preconditioner: Preconditioner | None = None,
    form: bool = False,
) -> Solved:
    """Solve (F + lambda I) x = g by a solver of :data:`CHOICES`; as :func:`natural_gradient`.

    Where a direct solve finds nothing, CG takes its place, and the distance to the floor is the
    error: the eigenvalues there are below rounding. Where CG was taken to be cheapest and reaches
    its limit of iterations, a direct solve that is worth them takes its place.

    Args:
        form: form the solution, (P,), too.
    """
    if solver not in CHOICES:
        raise EvalkitError(
            f"expected solver to be one of {', '.join(CHOICES)}, found '{solver}'; 'auto' takes "
            "the cheapest"
        )
    chosen = cheapest(lin, stopping) if solver == "auto" else solver
    direct = solve_directly(lin, damping, stopping.tolerance) if chosen == "direct" else None
    if direct is not None:
        return direct
    found = solve_by_cg(
        lin,
        damping,
        stopping,
        on_iteration,
        preconditioner=SIZE if chosen == "sketch" else preconditioner,
        form=form,
    )
    if chosen != solver and found.status == "iteration limit" and _is_worth_limit(lin, stopping):
        return solve_directly(lin, damping, stopping.tolerance) or found
    if chosen != "direct" or not found.gammas or not found.gamma_floor:
        return found
    # What the matrix could not resolve, a residual that CG meets does not show either.
    return replace(found, error=max(found.error, found.gammas[-1] / found.gamma_floor - 1))


def cheapest(lin: Linearization, stopping: Stopping, rates: Rates | None = None) -> Solver:
    """Return the solver that is expected to take the least time.

    Where times are near, the exact solver wins: the direct solve may take :data:`WORTH_OF_EXACT`
    times as long. Where a tolerance asks for so few digits that the row would be marked, an exact
    solution is worth nothing more.

    Args:
        lin: the model and batch.
        stopping: when CG stops.
        rates: the rates of the machine; None for those that are measured.
    """
    seconds = expected_seconds(lin, stopping, rates)
    least = min(seconds, key=lambda name: seconds[name])
    worth = WORTH_OF_EXACT if stopping.error < MARKED else 1.0
    return "direct" if seconds["direct"] <= worth * seconds[least] else least


def _is_worth_limit(lin: Linearization, stopping: Stopping) -> bool:
    """Return whether a direct solve may take as long as CG at its limit of iterations.

    Args:
        lin: the model and batch.
        stopping: when CG stops.
    """
    rates = machine_rates(lin.logits.device)
    limit = rates.seconds(stopping.max_iterations * _iteration_work(lin))
    return rates.seconds(_direct_work(lin)) <= WORTH_OF_EXACT * limit


def expected_seconds(
    lin: Linearization, stopping: Stopping, rates: Rates | None = None
) -> dict[Solver, float]:
    """Return the time that each solver is expected to take, infinite where it cannot be taken.

    Args:
        lin: the model and batch.
        stopping: when CG stops.
        rates: the rates of the machine; None for those that are measured.
    """
    rates = machine_rates(lin.logits.device) if rates is None else rates
    most = stopping.max_iterations
    slow = SLOWER_THAN_PREDICTED * expected_iterations(lin, stopping.error)
    if stopping.error < (REACHED * lin.unit) ** 2:
        # It would meet rounding before the tolerance, and go on.
        slow = most
    # The first step is along g, as without a sketch.
    fast = 1 + math.log(1 / stopping.error) / math.log(GAIN_WITH_SKETCH)
    factor, solve, iteration = factor_work(lin), solve_work(lin), _iteration_work(lin)
    # Work to set a solver up, and what each iteration or solve adds.
    works: dict[Solver, Work] = {
        "cg": min(slow, most) * iteration,
        "sketch": sketch_work(lin) + factor + min(fast, most) * (iteration + solve),
        "direct": _direct_work(lin),
    }
    return {name: rates.seconds(work) for name, work in works.items()}


def _iteration_work(lin: Linearization) -> Work:
    """Return the work of an iteration of CG."""
    return product_work(lin) + Work(calls=ITERATION_CALLS)


def _direct_work(lin: Linearization) -> Work:
    """Return the work of a direct solve."""
    solves = DIRECT_SOLVES * (2 * _iteration_work(lin) + solve_work(lin))
    return kernel_work(lin) + factor_work(lin) + solves


def expected_iterations(lin: Linearization, error: float) -> float:
    """Return the iterations of CG after which 1 / gamma^2 is within an error of its largest value.

    1 / gamma^2 is twice the fall of the quadratic model, so its relative error is that of CG in the
    norm of F: e_k <= 4 ((sqrt(kappa) - 1) / (sqrt(kappa) + 1))^(2k) for a condition number kappa.
    Its first step is one of steepest descent, with e_1 = 1 - (gamma_floor / gamma(g))^2 where the
    floor can be reached, and Kantorovich's inequality e_1 <= ((kappa - 1) / (kappa + 1))^2 bounds
    kappa from below (Saad, Iterative Methods for Sparse Linear Systems, 2003, sections 5.3, 6.11).

    Args:
        lin: the model and batch.
        error: e, between 0 and 1.
    """
    gamma = indicator(lin, lin.gradient_jvp).gamma
    if lin.gradient_norm == 0 or gamma == 0:
        return 0.0
    ratio = lin.gamma_floor / gamma
    # sqrt(e_1) <= (kappa - 1) / (kappa + 1), solved for 1 / sqrt(kappa).
    first = math.sqrt(max(0.0, 1 - ratio**2))
    inverse_root = math.sqrt((1 - first) / (1 + first))  # of kappa
    gain = 4 * math.atanh(min(inverse_root, 1 - 1e-16))  # of the bound's logarithm, an iteration
    return max(1.0, math.log(4 / error) / gain) if gain > 0 else math.inf
