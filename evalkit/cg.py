"""The exact natural gradient by linear conjugate gradients, without a matrix."""

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
        cotangents: y with x = J^T y, like logits, float64.
        iterations: of CG.
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
    cotangents: Tensor
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

    From x = 0 and v = res = g, each iteration does alpha = |res|^2 / v^T (F + lambda I) v;
    x += alpha v; res -= alpha (F + lambda I) v; beta = |res_new|^2 / |res|^2; v = res + beta v.

    All of these vectors lie in the range of J^T, since g = J^T r and F v = J^T S J v. So they are
    kept as cotangents: x = J^T y, res = J^T q, v = J^T w, with J v by the recurrence of v and one
    product J J^T q per iteration, which is cheaper than a Fisher-vector product. Inner products are
    q . (J J^T q) = |res|^2 and (J v) . S (J v) = v^T F v, in float64.

    Args:
        lin: the model and batch.
        damping: lambda >= 0.
        max_iterations: stop here at the latest.
        tolerance: stop when |res| <= tolerance |g|.
        floor_tolerance: stop when gamma <= (1 + floor_tolerance) gamma_floor; 0 leaves it out.
        on_iteration: called with the iteration and its gamma.

    Raises:
        EvalkitError: a setting is out of range.
    """
    damping = check_damping(damping)
    _check_settings(max_iterations, tolerance, floor_tolerance)
    goal = (1 + floor_tolerance) * lin.gamma_floor if floor_tolerance > 0 else 0.0
    y = jx = torch.zeros_like(lin.logit_gradients)
    q, jq = lin.logit_gradients, lin.gradient_jvp
    w, jv = q, jq
    rho = initial = checked = lin.gradient_norm**2
    gammas: list[float] = []
    status: Status = "iteration limit" if initial > 0 else "residual"
    while status == "iteration limit" and len(gammas) < max_iterations:
        sjv = lin.output_fisher(jv)
        curvature = float((jv * sjv).sum()) + damping * float((w * jv).sum())
        if not (curvature > 0 and math.isfinite(curvature)):
            status = "breakdown"
            break
        alpha = rho / curvature
        y, jx = y + alpha * w, jx + alpha * jv
        q = q - alpha * (sjv + damping * w)
        gammas.append(indicator(lin, jx).gamma)
        if on_iteration is not None:
            on_iteration(len(gammas), gammas[-1])
        if gammas[-1] <= goal:
            status = "floor"
            break
        jq, rho, previous = *_pushed(lin, q), rho
        if rho <= tolerance**2 * initial:
            # The recurrences drift from the truth: believe the recomputed residual only, and go on
            # from it as long as that still helps.
            jx = lin.kernel_product(y)
            q = lin.logit_gradients - lin.output_fisher(jx) - damping * y
            jq, rho = _pushed(lin, q)
            if rho <= tolerance**2 * initial:
                status = "residual"
            elif rho >= checked:
                status = "breakdown"
            w, jv, checked = q, jq, rho
        else:
            beta = rho / previous
            w, jv = q + beta * w, jq + beta * jv
    x = lin.vjp(y)
    residual = lin.gradient - lin.fvp(x) - damping * x
    return NaturalGradient(
        solution=x,
        cotangents=y,
        iterations=len(gammas),
        converged=status in ("residual", "floor"),
        relative_residual=norm(residual) / lin.gradient_norm if initial else 0.0,
        gammas=tuple(gammas),
        gamma_floor=lin.gamma_floor,
        status=status,
    )


def _pushed(lin: Linearization, q: Tensor) -> tuple[Tensor, float]:
    """Return J J^T q, and |J^T q|^2."""
    product = lin.kernel_product(q)
    return product, lin.pulled_norm(q, product) ** 2


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
