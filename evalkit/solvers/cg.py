"""The exact natural gradient by linear conjugate gradients, without a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from evalkit.indicator import Indicator, indicator_terms
from evalkit.linearization import Linearization
from evalkit.settings import check_damping
from evalkit.solvers.sketched import Sketched
from evalkit.solvers.solved import SHORT, Solved, Status, rounding
from evalkit.solvers.spaces import (
    Cotangents,
    Direction,
    Preconditioner,
    Search,
    Space,
    Step,
    Vectors,
)
from evalkit.solvers.stopping import Stopping

REPLACEMENT_PERIOD = 50
"""Iterations after which the residual is computed afresh, so that rounding cannot pile up."""

DELAY = 4
"""Steps whose gain stands for the error before them."""

OnIteration = Callable[[int, float], None]
"""Called with each iteration and its gamma."""


@dataclass(frozen=True, eq=False)
class _Point:
    """Where CG is.

    Attributes:
        x: like the residual.
        jx: J x, like logits.
        depth: the largest so far of 2 g^T x - x^T A x, twice the fall of the quadratic model.
    """

    x: Tensor
    jx: Tensor
    depth: float


@dataclass(frozen=True, eq=False)
class _Taken:
    """A step of CG, and where it leads.

    Attributes:
        step: the direction.
        alpha: how far along it.
        fall: of twice the quadratic model, as it is by recurrence.
        to: where it leads.
        gamma: of x there.
    """

    step: Step
    alpha: Tensor
    fall: Tensor
    to: _Point
    gamma: float


@dataclass(frozen=True, eq=False)
class _End:
    """Where CG stopped, and why.

    Attributes:
        at: the last point.
        status: as :class:`evalkit.solvers.solved.Solved` has it.
        square: |res|^2, computed from x where the status is ``"residual"``.
        gammas: of each iterate.
    """

    at: _Point
    status: Status
    square: float
    gammas: tuple[float, ...]


def solve_by_cg(
    lin: Linearization,
    damping: float,
    stopping: Stopping,
    on_iteration: OnIteration | None = None,
    preconditioner: Preconditioner | Literal["sketch"] | None = None,
    form: bool = False,
) -> Solved:
    """Solve (F + lambda I) x = g by linear CG.

    With A = F + lambda I and M^-1 the preconditioner (the identity in Algorithm 5): from x = 0,
    res = g and v = z = M^-1 res, each iteration does alpha = res^T z / v^T A v; x += alpha v;
    res -= alpha A v; z = M^-1 res; beta = res_new^T z_new / res^T z; v = z + beta v.

    In exact arithmetic each step deepens 2 g^T x - x^T A x; one that does not is not taken. Where
    equations nearly depend on each other, x = J^T y can be led far along y that J^T maps to nothing
    but rounding: if x is not as deep as its recurrence says, CG starts again on vectors of P
    numbers, where x keeps its digits.

    Every :data:`REPLACEMENT_PERIOD` iterations, and before a residual is believed to meet the
    tolerance, J x and the residual are computed from x instead of by recurrence. Numbers that
    decide are read once per iteration, so that a GPU is waited for once.

    Args:
        lin: the model and batch.
        damping: lambda >= 0.
        stopping: when to stop.
        on_iteration: called with the iteration and its gamma.
        preconditioner: maps a residual, (P,), to M^-1 res, (P,), with M^-1 symmetric and positive
            definite; or ``"sketch"`` for :class:`evalkit.solvers.sketched.Sketched`. Without one
            and with a sketch, no vector of P numbers is formed as long as rounding allows.
        form: form the solution in any case.

    Raises:
        EvalkitError: the damping is out of range.
    """
    damping = check_damping(damping)
    space = _space(lin, damping, preconditioner)
    end = _iterate(space, damping, stopping, on_iteration)
    x, of_vectors = end.at.x, isinstance(space, Vectors)
    vector = x if of_vectors else lin.vjp(x) if form else None
    length = math.sqrt(end.square)
    if end.status != "residual":
        jx = space.push(x) if vector is None else lin.jvp(vector).double()
        depth = float(_model(space, damping, x, jx)[2])
        if not of_vectors and depth < (1 - SHORT) * end.at.depth:
            return solve_by_cg(lin, damping, stopping, on_iteration, preconditioner=_identity)
        length = space.norm(space.residual(x, lin.output_fisher(jx), damping))
    return Solved(
        cotangents=None if of_vectors else x,
        vector=vector,
        solver="sketch" if isinstance(space, Sketched) else "cg",
        iterations=len(end.gammas),
        converged=end.status in ("residual", "floor"),
        relative_residual=length / lin.gradient_norm if lin.gradient_norm > 0 else 0.0,
        gammas=end.gammas,
        gamma_floor=lin.gamma_floor,
        status=end.status,
        error=_left(end, lin.gamma_floor),
    )


def _left(end: _End, gamma_floor: float) -> float:
    """Return an estimate of the relative error of gamma that CG leaves.

    No gamma is below the floor. Where the residual met the tolerance, the error of the iterate
    :data:`DELAY` steps before the last is what the steps since then have gained, and bounds that of
    the last (Strakos and Tichy, On error estimation in the conjugate gradient method, 2002).
    """
    if not end.gammas:
        return 0.0
    last = end.gammas[-1]
    if last == 0:  # no gamma is smaller
        return 0.0
    to_floor = last / gamma_floor - 1 if gamma_floor > 0 else math.inf
    if end.status != "residual":
        return abs(to_floor)
    return min(abs(to_floor), abs(end.gammas[-1 - min(DELAY, len(end.gammas) - 1)] / last - 1))


def _identity(residual: Tensor) -> Tensor:
    return residual


def _iterate(
    space: Space, damping: float, stopping: Stopping, on_iteration: OnIteration | None
) -> _End:
    """Run CG until it stops."""
    lin = space.lin
    initial = lin.gradient_norm**2
    enough, goal = stopping.tolerance**2 * initial, stopping.goal(lin.gamma_floor)
    status: Status = "iteration limit" if initial > 0 else "residual"
    res, found = space.gradient, space.first()
    at = _Point(torch.zeros_like(res), torch.zeros_like(lin.logit_gradients), 0.0)
    way = Direction(found.z, found.jz)
    square, depth = initial, 0.0  # when a residual that seemed small was last recomputed
    gammas: list[float] = []
    while status == "iteration limit" and len(gammas) < stopping.max_iterations:
        taken = _take(space, damping, res, found, way, at)
        if taken is None:
            status = "breakdown"
            break
        at = taken.to
        gammas.append(taken.gamma)
        if on_iteration is not None:
            on_iteration(len(gammas), taken.gamma)
        if goal is not None and taken.gamma <= goal:
            status = "floor"
            break
        due, small = len(gammas) % REPLACEMENT_PERIOD == 0, False
        if not due:
            small = space.stalled(taken.fall)
            res = res - taken.alpha * (space.lift(taken.step.sjv) + damping * way.v)
            if not small:
                found = space.search(res, recomputed=False)
                small = found.square <= enough
        if due or small:
            at = replace(at, jx=space.push(at.x))
            res = space.residual(at.x, lin.output_fisher(at.jx), damping)
            found = space.search(res, recomputed=True)
        if (due or small) and found.square <= enough:
            status = "residual"
        elif small and found.square >= square and at.depth <= (1 + rounding(lin)) * depth:
            status = "breakdown"
        else:
            # A recurrence that strayed is left behind: start again from the residual it missed.
            square, depth = (found.square, at.depth) if small else (square, depth)
            way = space.next(found, taken.step, at.x, at.jx, restart=small)
    return _End(at, status, found.square, tuple(gammas))


def _take(
    space: Space, damping: float, res: Tensor, found: Search, way: Direction, at: _Point
) -> _Taken | None:
    """Return the best step along a direction; None where rounding has taken it over.

    Then no curvature is left along the direction, or the step would not deepen the model.
    """
    v, jv = way.v, way.jv
    sjv = space.lin.output_fisher(jv)
    curvature = (jv * sjv).sum() + damping * space.square(v, jv)
    alpha = space.descent(found, res, jv) / curvature
    x, jx = at.x + alpha * v, at.jx + alpha * jv
    decisive = torch.stack([curvature, *_model(space, damping, x, jx)])
    bend, quadratic, slope, depth = decisive.tolist()
    if not 0 < bend < math.inf or depth < (1 - rounding(space.lin)) * at.depth:
        return None
    return _Taken(
        step=Step(v, jv, sjv, curvature, found.rho),
        alpha=alpha,
        fall=alpha * alpha * bend,
        to=_Point(x, jx, max(at.depth, depth)),
        gamma=Indicator(math.sqrt(quadratic), slope).gamma,
    )


def _model(space: Space, damping: float, x: Tensor, jx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x^T F x, g^T x and 2 g^T x - x^T A x, twice the quadratic model's fall from 0 to x."""
    quadratic, slope = indicator_terms(space.lin, jx)
    return quadratic, slope, 2 * slope - quadratic - damping * space.square(x, jx)


def _space(
    lin: Linearization, damping: float, preconditioner: Preconditioner | Literal["sketch"] | None
) -> Space:
    if preconditioner is None:
        return Cotangents(lin)
    if preconditioner == "sketch":
        return Sketched(lin, damping)
    return Vectors(lin, preconditioner)
