"""The exact natural gradient by linear conjugate gradients on Fisher-vector products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.indicator import indicator
from evalkit.linearization import Linearization
from evalkit.reductions import norm
from evalkit.settings import check_damping

Status = Literal["residual", "floor", "iteration limit", "breakdown"]


@dataclass(frozen=True)
class NaturalGradient:
    """The solution of (F + lambda I) x = g, and how far it can be trusted.

    Attributes:
        solution: x, (P,).
        iterations: Fisher-vector products spent on the solve.
        converged: whether one of the two tolerances was met.
        relative_residual: |g - (F + lambda I) x| / |g|, recomputed from the solution.
        gammas: gamma of each iterate; without damping they fall (paper, appendix F.2).
        gamma_floor: the bound below which no gamma can be; ``gammas[-1] / gamma_floor`` certifies
            the distance to the optimum.
        status: why the solver stopped: ``"residual"`` (tolerance met), ``"floor"`` (gamma within
            ``floor_tolerance`` of the floor), ``"iteration limit"``, or ``"breakdown"`` (rounding
            keeps the residual from falling further).
    """

    solution: Tensor
    iterations: int
    converged: bool
    relative_residual: float
    gammas: tuple[float, ...]
    gamma_floor: float
    status: Status


def natural_gradient(
    lin: Linearization,
    damping: float = 0.0,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
    floor_tolerance: float = 0.0,
    on_iteration: Callable[[int, float], None] | None = None,
) -> NaturalGradient:
    """Return (F + lambda I)^-1 g by linear CG (paper, Algorithm 5).

    From x = 0 and v = r = g, each iteration takes one Fisher-vector product:
    alpha = |r|^2 / v^T (F + lambda I) v; x += alpha v; r -= alpha (F + lambda I) v;
    beta = |r_new|^2 / |r|^2; v = r + beta v. The curvature v^T F v and the gamma of the iterate
    are taken in logit space from J v, so they are exact sums of squares in float64.

    Args:
        lin: the model and batch.
        damping: lambda >= 0.
        max_iterations: stop here at the latest.
        tolerance: stop when |r| <= tolerance |g|.
        floor_tolerance: stop when gamma <= (1 + floor_tolerance) gamma_floor; 0 leaves it out.
        on_iteration: called with the iteration and its gamma.

    Raises:
        EvalkitError: a setting is out of range.
    """
    damping = check_damping(damping)
    _check_settings(max_iterations, tolerance, floor_tolerance)
    g = lin.gradient
    x, residual, v = torch.zeros_like(g), g.clone(), g.clone()
    residual_parts = lin.split(residual)  # views: products are subtracted without joining them
    jx = torch.zeros_like(lin.logit_gradients)
    rho = initial = checked = lin.gradient_norm**2
    goal = (1 + floor_tolerance) * lin.gamma_floor if floor_tolerance > 0 else 0.0
    gammas: list[float] = []
    status: Status = "iteration limit" if initial > 0 else "residual"
    while status == "iteration limit" and len(gammas) < max_iterations:
        jv = lin.jvp(v).double()
        sjv = lin.output_fisher(jv)
        curvature = float((jv * sjv).sum()) + (damping * norm([v]) ** 2 if damping else 0.0)
        if not (curvature > 0 and math.isfinite(curvature)):
            status = "breakdown"
            break
        alpha = rho / curvature
        x.add_(v, alpha=alpha)
        for part, product in zip(residual_parts, lin.vjp_by_parameter(sjv), strict=True):
            part.sub_(product, alpha=alpha)
        if damping:
            residual.sub_(v, alpha=alpha * damping)
        jx += alpha * jv
        gammas.append(indicator(lin, jx).gamma)
        if on_iteration is not None:
            on_iteration(len(gammas), gammas[-1])
        rho, previous = norm([residual]) ** 2, rho
        v.mul_(rho / previous).add_(residual)
        if gammas[-1] <= goal:
            status = "floor"
        elif rho <= tolerance**2 * initial:
            # The recursion drifts from the truth: believe the recomputed residual only, and go on
            # from it as long as that still helps.
            residual.copy_(_residual(lin, x, damping))
            v = residual.clone()
            rho = norm([residual]) ** 2
            if rho <= tolerance**2 * initial:
                status = "residual"
            elif rho >= checked:
                status = "breakdown"
            checked = rho
    relative = norm([_residual(lin, x, damping)]) / lin.gradient_norm if initial else 0.0
    return NaturalGradient(
        solution=x,
        iterations=len(gammas),
        converged=status in ("residual", "floor"),
        relative_residual=relative,
        gammas=tuple(gammas),
        gamma_floor=lin.gamma_floor,
        status=status,
    )


def _residual(lin: Linearization, x: Tensor, damping: float) -> Tensor:
    """Return g - (F + lambda I) x: (P,)."""
    return lin.gradient - lin.fvp(x) - damping * x


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
