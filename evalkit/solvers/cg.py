"""The exact natural gradient by linear conjugate gradients, without a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.indicator import Indicator, indicator_terms
from evalkit.linearization import Linearization
from evalkit.settings import check_damping
from evalkit.solvers.solved import Solved, Status
from evalkit.solvers.spaces import Cotangents, Preconditioner, Sketched, Space, Step, Vectors

REPLACEMENT_PERIOD = 50
"""Iterations after which the residual is computed afresh, so that rounding cannot pile up."""

OnIteration = Callable[[int, float], None]
"""Called with each iteration and its gamma."""


def solve_by_cg(
    lin: Linearization,
    damping: float = 0.0,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
    floor_tolerance: float = 0.0,
    on_iteration: OnIteration | None = None,
    preconditioner: Preconditioner | Literal["sketch"] | None = None,
    form: bool = False,
) -> Solved:
    """Solve (F + lambda I) x = g by linear CG.

    With A = F + lambda I and M^-1 the preconditioner (the identity in Algorithm 5): from x = 0,
    res = g and v = z = M^-1 res, each iteration does alpha = res^T z / v^T A v; x += alpha v;
    res -= alpha A v; z = M^-1 res; beta = res_new^T z_new / res^T z; v = z + beta v.

    Every :data:`REPLACEMENT_PERIOD` iterations, and before a residual is believed to meet the
    tolerance, J x and the residual are computed from x instead of by recurrence. Numbers that
    decide are read once per iteration, so that a GPU is waited for once.

    Args:
        lin: the model and batch.
        damping: lambda >= 0.
        max_iterations: stop here at the latest.
        tolerance: stop when |res| <= tolerance |g|.
        floor_tolerance: stop when gamma <= (1 + floor_tolerance) gamma_floor; 0 leaves it out.
        on_iteration: called with the iteration and its gamma.
        preconditioner: maps a residual, (P,), to M^-1 res, (P,), with M^-1 symmetric and positive
            definite; or ``"sketch"`` for :class:`evalkit.solvers.spaces.Sketched`. Without one and
            with a sketch, no vector of P numbers is formed.
        form: form the solution in any case.

    Raises:
        EvalkitError: a setting is out of range.
    """
    damping = check_damping(damping)
    _check_settings(max_iterations, tolerance, floor_tolerance)
    goal = (1 + floor_tolerance) * lin.gamma_floor if floor_tolerance > 0 else 0.0
    space = _space(lin, damping, preconditioner)
    initial = checked = lin.gradient_norm**2
    status: Status = "iteration limit" if initial > 0 else "residual"
    res, found = space.gradient, space.first()
    x, jx = torch.zeros_like(res), torch.zeros_like(lin.logit_gradients)
    v, jv = found.z, found.jz
    held: Tensor | None = None  # x when the residual was last recomputed
    gammas: list[float] = []
    while status == "iteration limit" and len(gammas) < max_iterations:
        sjv = lin.output_fisher(jv)
        curvature = (jv * sjv).sum() + damping * space.square(v, jv)
        alpha = space.descent(found, res, jv) / curvature
        moved = jx + alpha * jv
        bend, quadratic, slope = torch.stack([curvature, *indicator_terms(lin, moved)]).tolist()
        if not (bend > 0 and math.isfinite(bend)):
            status = "breakdown"
            break
        step = Step(v, jv, sjv, curvature, found.rho)
        x, jx = x + alpha * v, moved
        gammas.append(Indicator(math.sqrt(quadratic), slope).gamma)
        if on_iteration is not None:
            on_iteration(len(gammas), gammas[-1])
        if gammas[-1] <= goal:
            status = "floor"
            break
        small = False
        if len(gammas) % REPLACEMENT_PERIOD:
            small = space.stalled(alpha * alpha * bend)
            res = res - alpha * (space.lift(sjv) + damping * v)
            if not small:
                found = space.search(res, recomputed=False)
                small = found.square <= tolerance**2 * initial
        if small or len(gammas) % REPLACEMENT_PERIOD == 0:
            jx = space.push(x)
            res = space.residual(x, lin.output_fisher(jx), damping)
            found = space.search(res, recomputed=True)
            if found.square <= tolerance**2 * initial:
                status = "residual"
            elif small and found.square >= checked:
                status = "breakdown"
                x = x if held is None else held
        # A recurrence that strayed is left behind: start again from the residual it missed.
        checked, held = (found.square, x) if small else (checked, held)
        v, jv = space.next(found, step, x, jx, restart=small)
    of_vectors = isinstance(space, Vectors)
    vector = x if of_vectors else lin.vjp(x) if form else None
    relative = 0.0
    if initial > 0 and status == "residual":
        relative = math.sqrt(found.square / initial)  # of the residual just recomputed
    elif initial > 0:
        jx = space.push(x) if vector is None else lin.jvp(vector).double()
        relative = space.norm(space.residual(x, lin.output_fisher(jx), damping)) / initial**0.5
    return Solved(
        cotangents=None if of_vectors else x,
        vector=vector,
        solver="sketch" if isinstance(space, Sketched) else "cg",
        iterations=len(gammas),
        converged=status in ("residual", "floor"),
        relative_residual=relative,
        gammas=tuple(gammas),
        gamma_floor=lin.gamma_floor,
        status=status,
    )


def _space(
    lin: Linearization, damping: float, preconditioner: Preconditioner | Literal["sketch"] | None
) -> Space:
    if preconditioner is None:
        return Cotangents(lin)
    if preconditioner == "sketch":
        return Sketched(lin, damping)
    return Vectors(lin, preconditioner)


def _check_settings(max_iterations: int, tolerance: float, floor_tolerance: float) -> None:
    if max_iterations < 1:
        raise EvalkitError(
            f"expected max_iterations of at least 1, found {max_iterations}; allow one iteration"
        )
    for name, value in (("tolerance", tolerance), ("floor_tolerance", floor_tolerance)):
        if not 0 <= value < math.inf:
            raise EvalkitError(
                f"expected {name} to be a finite number of at least 0, found {value}; choose one"
            )
