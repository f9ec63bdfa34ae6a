"""The exact natural gradient by linear conjugate gradients, without a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evalkit.indicator import Indicator, indicator_terms
from evalkit.linearization import Linearization
from evalkit.settings import check_damping
from evalkit.solvers.solved import Solved, Status
from evalkit.solvers.spaces import (
    Cotangents,
    Preconditioner,
    Search,
    Sketched,
    Space,
    Step,
    Vectors,
)
from evalkit.solvers.stopping import Stopping

REPLACEMENT_PERIOD = 50
"""Iterations after which the residual is computed afresh, so that rounding cannot pile up."""

STRAYED = 1e-3
"""Part of the depth that a recurrence may have lost to rounding."""

OnIteration = Callable[[int, float], None]
"""Called with each iteration and its gamma."""


@dataclass(frozen=True)
class _Taken:
    """A step of CG, and where it leads.

    Attributes:
        step: the direction.
        alpha: how far along it.
        x: where it leads.
        jx: J x there.
        fall: of twice the quadratic model, as it is by recurrence.
        depth: of twice the quadratic model there, 2 g^T x - x^T A x.
        gamma: of x there.
    """

    step: Step
    alpha: Tensor
    x: Tensor
    jx: Tensor
    fall: Tensor
    depth: float
    gamma: float


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
    equations depend on each other a sketch can lead x far along what J^T maps to zero, so that only
    rounding is left of it: if x is not as deep as its recurrence says, CG starts without a sketch.

    Every :data:`REPLACEMENT_PERIOD` iterations, and before a residual is believed to meet the
    tolerance, J x and the residual are computed from x instead of by recurrence. Numbers that
    decide are read once per iteration, so that a GPU is waited for once.

    Args:
        lin: the model and batch.
        damping: lambda >= 0.
        stopping: when to stop.
        on_iteration: called with the iteration and its gamma.
        preconditioner: maps a residual, (P,), to M^-1 res, (P,), with M^-1 symmetric and positive
            definite; or ``"sketch"`` for :class:`evalkit.solvers.spaces.Sketched`. Without one and
            with a sketch, no vector of P numbers is formed.
        form: form the solution in any case.

    Raises:
        EvalkitError: the damping is out of range.
    """
    damping = check_damping(damping)
    space = _space(lin, damping, preconditioner)
    initial = checked = lin.gradient_norm**2
    enough = stopping.tolerance**2 * initial
    status: Status = "iteration limit" if initial > 0 else "residual"
    res, found = space.gradient, space.first()
    x, jx = torch.zeros_like(res), torch.zeros_like(lin.logit_gradients)
    v, jv = found.z, found.jz
    depth, slack = 0.0, torch.finfo(lin.logits.dtype).eps ** 0.5
    held: Tensor | None = None  # x when the residual was last recomputed
    gammas: list[float] = []
    while status == "iteration limit" and len(gammas) < stopping.max_iterations:
        taken = _take(space, damping, found, res, v, jv, x, jx)
        if taken is None or taken.depth < (1 - slack) * depth:  # a step that rounding leads
            status = "breakdown"
            break
        x, jx, depth = taken.x, taken.jx, max(depth, taken.depth)
        gammas.append(taken.gamma)
        if on_iteration is not None:
            on_iteration(len(gammas), taken.gamma)
        if taken.gamma <= stopping.goal(lin.gamma_floor):
            status = "floor"
            break
        due, small = len(gammas) % REPLACEMENT_PERIOD == 0, False
        if not due:
            small = space.stalled(taken.fall)
            res = res - taken.alpha * (space.lift(taken.step.sjv) + damping * v)
            if not small:
                found = space.search(res, recomputed=False)
                small = found.square <= enough
        if due or small:
            jx = space.push(x)
            res = space.residual(x, lin.output_fisher(jx), damping)
            found = space.search(res, recomputed=True)
            if found.square <= enough:
                status = "residual"
            elif small and found.square >= checked:
                status = "breakdown"
                x = x if held is None else held
        # A recurrence that strayed is left behind: start again from the residual it missed.
        checked, held = (found.square, x) if small else (checked, held)
        v, jv = space.next(found, taken.step, x, jx, restart=small)
    of_vectors = isinstance(space, Vectors)
    vector = x if of_vectors else lin.vjp(x) if form else None
    if status == "residual":
        length = math.sqrt(found.square)  # of the residual just recomputed
    else:
        jx = space.push(x) if vector is None else lin.jvp(vector).double()
        found_depth = float(_model(space, damping, x, jx)[2])
        if isinstance(space, Sketched) and found_depth < (1 - STRAYED) * depth:
            return solve_by_cg(lin, damping, stopping, on_iteration, form=form)
        length = space.norm(space.residual(x, lin.output_fisher(jx), damping))
    return Solved(
        cotangents=None if of_vectors else x,
        vector=vector,
        solver="sketch" if isinstance(space, Sketched) else "cg",
        iterations=len(gammas),
        converged=status in ("residual", "floor"),
        relative_residual=length / lin.gradient_norm if initial > 0 else 0.0,
        gammas=tuple(gammas),
        gamma_floor=lin.gamma_floor,
        status=status,
    )


def _take(
    space: Space,
    damping: float,
    found: Search,
    res: Tensor,
    v: Tensor,
    jv: Tensor,
    x: Tensor,
    jx: Tensor,
) -> _Taken | None:
    """Return the best step along v from x; None where rounding has left v without curvature."""
    sjv = space.lin.output_fisher(jv)
    curvature = (jv * sjv).sum() + damping * space.square(v, jv)
    alpha = space.descent(found, res, jv) / curvature
    there, moved = x + alpha * v, jx + alpha * jv
    decisive = torch.stack([curvature, *_model(space, damping, there, moved)])
    bend, quadratic, slope, depth = decisive.tolist()
    if not (bend > 0 and math.isfinite(bend)):
        return None
    gamma = Indicator(math.sqrt(quadratic), slope).gamma
    step = Step(v, jv, sjv, curvature, found.rho)
    return _Taken(step, alpha, there, moved, alpha * alpha * bend, depth, gamma)


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
