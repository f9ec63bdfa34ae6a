"""The exact natural gradient by linear conjugate gradients, without a matrix."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from evalkit.layers.sketches import SketchSize
from evalkit.linearization import Linearization
from evalkit.settings import check_damping
from evalkit.solvers.preconditioners import Given, Preconditioner, Sketched
from evalkit.solvers.solved import SHORT, Solved, Solver, Status
from evalkit.solvers.spaces import cotangents, vectors
from evalkit.solvers.stopping import Stopping
from evalkit.solvers.system import Direction, OnIteration, Point, System

DELAY = 4
"""Steps whose gain stands for the error before them."""

LEFT = 1e-12
"""Part of the curvature along M^-1 res below which what is conjugate to all steps is rounding."""


def conjugate_gradients(system: System) -> tuple[Point, Status]:
    """Return where CG ends, and why (paper, Algorithm 5).

    From x = 0 and v = res = g, each iteration does

        alpha = res^T res / v^T A v;  x += alpha v;  res_new = res - alpha A v;
        beta = res_new^T res_new / res^T res;  v = res_new + beta v.
    """
    space, at = system.space, system.origin()
    res, jres, square = space.gradient, system.lin.gradient_jvp, at.square
    v, jv, checked = res, jres, at
    if square == 0:
        return at, "residual"
    for iteration in range(1, system.stopping.max_iterations + 1):
        step = system.step(at, system.direction(v, jv), square)
        if step is None:
            return at, "breakdown"
        at, before = step.to, square
        if system.near_floor(at):
            return at, "floor"
        due, small = iteration % system.period == 0, False
        if not due:
            res = system.next_residual(res, step)
            # The one product of an iteration: J v follows from it by the recurrence of v.
            jres = space.push(res)
            square = space.norm(res, jres) ** 2
            small = system.solved(square)
        if due or small:  # a recurrence is not believed that the residual is small
            jx = space.push(at.x)
            res = system.residual(at.x, jx)
            jres = space.push(res)
            square = space.norm(res, jres) ** 2
            at = replace(at, jx=jx, square=square)
            if system.solved(square):
                return at, "residual"
        if small:
            if not system.gained(at, since=checked):
                return at, "breakdown"
            checked = at
        # A recurrence that strayed is left behind: start again from the residual that it missed.
        beta = 0.0 if small else square / before
        v, jv = res + beta * v, jres + beta * jv
    return at, "iteration limit"


def preconditioned(system: System, inverse: Given | Sketched) -> tuple[Point, Status]:
    """Return where CG ends whose directions come from z = M^-1 res, and why.

    A direction is z without its parts along the steps s so far, or along the last where M is
    symmetric, and the step along it is the best one whatever rounding left in it:

        v = z - sum_s (s^T A z / s^T A s) s;  alpha = res^T v / v^T A v.
    """
    space, at = system.space, system.origin()
    res, found, checked = space.gradient, inverse.first(), at
    way = system.direction(found.z, found.jz)
    # With a symmetric M the last step is enough: its recurrence keeps all others conjugate.
    ways: deque[Direction] = deque(maxlen=inverse.memory)
    falls: list[float] = []
    if at.square == 0:
        return at, "residual"
    for iteration in range(1, system.stopping.max_iterations + 1):
        step = system.step(at, way, space.inner(res, way.v, way.jv))
        if step is None:
            return at, "breakdown"
        at = step.to
        if system.near_floor(at):
            return at, "floor"
        due, small = iteration % system.period == 0, False
        if not due:
            res = system.next_residual(res, step)
            falls.append(step.fall)
            # The recurrence may have strayed: what is left is computed, and counted from here.
            if small := _stalled(system.lin, falls):
                falls = [sum(falls)]
            else:
                found = inverse.search(res)
                small = system.solved(found.square)
        if due or small:
            jx = space.push(at.x)
            res = system.residual(at.x, jx)
            at = replace(at, jx=jx, square=space.norm(res, None) ** 2)
            if system.solved(at.square):
                return at, "residual"
            found = inverse.search(res)
        if small:
            if not system.gained(at, since=checked):
                return at, "breakdown"
            checked = at
        target = system.direction(found.z, found.jz)
        ways.append(step.way)
        way = system.conjugate(target, ways)
        if small or not bool(way.curvature > LEFT * target.curvature):
            # The steps strayed, or have reached everything but rounding: they start anew. Of them x
            # remains, so that gamma, which knows no length of x, keeps falling.
            ways.clear()
            ways.append(system.direction(at.x, at.jx))
            way = system.conjugate(target, ways)
    return at, "iteration limit"


def _stalled(lin: Linearization, falls: Sequence[float]) -> bool:
    """Return whether the last three steps were within rounding of all together.

    A step along rounding is as long as it likes; a tolerance that cannot be met would let such
    steps go on.
    """
    least = (10 * torch.finfo(lin.logits.dtype).eps) ** 2
    return len(falls) >= 4 and max(falls[-3:]) <= least * sum(falls)


def solve_by_cg(
    lin: Linearization,
    damping: float,
    stopping: Stopping,
    on_iteration: OnIteration | None = None,
    preconditioner: Preconditioner | SketchSize | None = None,
    form: bool = False,
) -> Solved:
    """Solve (F + lambda I) x = g by linear CG.

    Args:
        lin: the model and batch.
        damping: lambda >= 0.
        stopping: when to stop.
        on_iteration: called with the iteration and its gamma.
        preconditioner: maps a residual, (P,), to M^-1 res, (P,), with M^-1 symmetric and positive
            definite; or the size of a sketch (:class:`evalkit.solvers.preconditioners.Sketched`).
            Without one and with a sketch, no vector of P numbers is formed as long as rounding
            allows.
        form: form the solution in any case.

    Raises:
        EvalkitError: the damping is out of range.
    """
    damping = check_damping(damping)
    system = System(lin, cotangents(lin), damping, stopping, on_iteration)
    if preconditioner is None:
        return _solved(system, conjugate_gradients, "cg", form)
    if isinstance(preconditioner, SketchSize):
        by_sketch = partial(preconditioned, inverse=Sketched(lin, damping, preconditioner))
        return _solved(system, by_sketch, "sketch", form)
    system = replace(system, space=vectors(lin))
    return _solved(system, partial(preconditioned, inverse=Given(lin, preconditioner)), "cg", form)


def _solved(
    system: System, search: Callable[[System], tuple[Point, Status]], solver: Solver, form: bool
) -> Solved:
    """Return what a search finds, with the residual computed from the solution.

    Where equations nearly depend on each other, x = J^T y can be led far along y that J^T maps to
    nothing but rounding: if x is not as deep as its recurrence says, CG starts again on vectors of
    P numbers, where x keeps its digits.
    """
    lin, space = system.lin, system.space
    at, status = search(system)
    vector = lin.vjp(at.x) if form and space.of_cotangents else None
    vector = vector if space.of_cotangents else at.x
    length = math.sqrt(at.square)
    if status != "residual":
        # Of what is returned: where x is formed, that it was made of cotangents no longer counts.
        jx = space.push(at.x) if vector is None else lin.jvp(vector).double()
        if space.of_cotangents and float(system.model(at.x, jx)[2]) < (1 - SHORT) * at.depth:
            system = replace(system, space=vectors(lin))
            return _solved(system, conjugate_gradients, "cg", form)
        length = space.norm(system.residual(at.x, jx), None)
    relative = length / lin.gradient_norm if lin.gradient_norm > 0 else 0.0
    return Solved(
        cotangents=at.x if space.of_cotangents else None,
        vector=vector,
        solver=solver,
        iterations=len(at.gammas),
        converged=status in ("residual", "floor"),
        relative_residual=relative,
        gammas=at.gammas,
        gamma_floor=lin.gamma_floor,
        status=status,
        error=_left(system, at, status, relative),
    )


def _left(system: System, at: Point, status: Status, relative: float) -> float:
    """Return an estimate of the relative error of gamma that CG leaves.

    (F + lambda I)^-1 g has the smallest gamma^2 + lambda (|d| / slope)^2, which is 1 / D for the
    depth D of any iterate at most: its gamma is between the floor and D^(-1/2), and so is that of
    the iterate. Where the residual met the tolerance, two more things are known, of which the worse
    counts. The error :data:`DELAY` steps before the last is what the steps since then have gained,
    and bounds that of the last, unless g hardly has the smallest eigenvalues (Strakos and Tichy, On
    error estimation in the conjugate gradient method, 2002). And with a residual res, a part m of D
    is missed with m D = res^T A^-1 res, at most |res|^2 / lambda, which moves gamma by m / 2 and,
    as in a direct solve, by sqrt(m s) with s = lambda |x|^2 / D, where x itself is off by
    sqrt(m D / lambda) at most. Without a damping nothing is known of the smallest eigenvalue.

    Args:
        system: that was solved.
        at: where CG ended.
        status: why.
        relative: |res| / |g|.
    """
    gammas, damping = at.gammas, system.damping
    if not gammas or gammas[-1] == 0:  # no gamma is smaller
        return 0.0
    last, floor = gammas[-1], system.lin.gamma_floor
    between = abs(last / floor - 1) if floor > 0 else math.inf
    if damping:
        between = max(between, 1 - last * math.sqrt(max(at.depth, 0.0)))
    if status != "residual" or not damping or at.depth <= 0:
        return between
    gained = abs(gammas[-1 - min(DELAY, len(gammas) - 1)] / last - 1)
    missed = (relative * system.lin.gradient_norm) ** 2 / (damping * at.depth)
    share = damping * float(system.space.inner(at.x, at.x, at.jx)) / at.depth
    estimate = max(gained, 1.5 * missed + math.sqrt(missed * max(share, 0.0)))
    return min(between, estimate) if estimate < 1 else between
