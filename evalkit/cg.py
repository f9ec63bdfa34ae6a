"""The exact natural gradient by linear conjugate gradients, without a matrix."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.indicator import Indicator, indicator_terms
from evalkit.linearization import Linearization
from evalkit.reductions import norm
from evalkit.settings import check_damping
from evalkit.solved import NaturalGradient, Solved, Status, formed

REPLACEMENT_PERIOD = 50
"""Iterations after which the residual is computed afresh, so that rounding cannot pile up."""

Preconditioner = Callable[[Tensor], Tensor]
OnIteration = Callable[[int, float], None]


def natural_gradient(
    lin: Linearization,
    damping: float = 0.0,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
    floor_tolerance: float = 0.0,
    on_iteration: OnIteration | None = None,
    preconditioner: Preconditioner | None = None,
) -> NaturalGradient:
    """Return (F + lambda I)^-1 g by linear CG (paper, Algorithm 5).

    Arguments and errors as :func:`solve_by_cg`.
    """
    solved = solve_by_cg(
        lin, damping, max_iterations, tolerance, floor_tolerance, on_iteration, preconditioner
    )
    return formed(lin, solved)


def solve_by_cg(
    lin: Linearization,
    damping: float = 0.0,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
    floor_tolerance: float = 0.0,
    on_iteration: OnIteration | None = None,
    preconditioner: Preconditioner | None = None,
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
            definite. Without one, no vector of P numbers is formed.

    Raises:
        EvalkitError: a setting is out of range.
    """
    damping = check_damping(damping)
    _check_settings(max_iterations, tolerance, floor_tolerance)
    goal = (1 + floor_tolerance) * lin.gamma_floor if floor_tolerance > 0 else 0.0
    space = _Cotangents(lin) if preconditioner is None else _Vectors(lin, preconditioner)
    initial = checked = lin.gradient_norm**2
    status: Status = "iteration limit" if initial > 0 else "residual"
    res, found = space.gradient, space.first()
    x, jx = torch.zeros_like(res), torch.zeros_like(lin.logit_gradients)
    v, jv = found.z, found.jz
    gammas: list[float] = []
    while status == "iteration limit" and len(gammas) < max_iterations:
        sjv = lin.output_fisher(jv)
        curvature = (jv * sjv).sum() + damping * space.square(v, jv)
        alpha = found.rho / curvature
        moved = jx + alpha * jv
        bend, quadratic, slope = torch.stack([curvature, *indicator_terms(lin, moved)]).tolist()
        if not (bend > 0 and math.isfinite(bend)):
            status = "breakdown"
            break
        x, jx = x + alpha * v, moved
        gammas.append(Indicator(math.sqrt(quadratic), slope).gamma)
        if on_iteration is not None:
            on_iteration(len(gammas), gammas[-1])
        if gammas[-1] <= goal:
            status = "floor"
            break
        previous, small = found.rho, False
        if len(gammas) % REPLACEMENT_PERIOD:
            res = res - alpha * (space.lift(sjv) + damping * v)
            found = space.search(res)
            small = found.square <= tolerance**2 * initial
        if small or len(gammas) % REPLACEMENT_PERIOD == 0:
            jx = space.push(x)
            res = space.residual(x, lin.output_fisher(jx), damping)
            found = space.search(res)
        if found.square <= tolerance**2 * initial:
            status = "residual"
        elif small and found.square >= checked:
            status = "breakdown"
        # A recurrence that strayed is left behind: start again from the residual it missed.
        beta = 0.0 if small else found.rho / previous
        checked = found.square if small else checked
        v, jv = found.z + beta * v, found.jz + beta * jv
    relative = 0.0
    if initial > 0 and status == "residual":
        relative = math.sqrt(found.square / initial)  # of the residual just recomputed
    elif initial > 0:
        res = space.residual(x, lin.output_fisher(space.push(x)), damping)
        relative = space.norm(res) / math.sqrt(initial)
    return Solved(
        cotangents=x if preconditioner is None else None,
        vector=None if preconditioner is None else x,
        solver="cg",
        iterations=len(gammas),
        converged=status in ("residual", "floor"),
        relative_residual=relative,
        gammas=tuple(gammas),
        gamma_floor=lin.gamma_floor,
        status=status,
    )


@dataclass(frozen=True)
class _Search:
    """A preconditioned residual z = M^-1 res.

    Attributes:
        z: like the residual.
        jz: J z, like logits.
        rho: res^T z.
        square: |res|^2.
    """

    z: Tensor
    jz: Tensor
    rho: float
    square: float


class _Space(ABC):
    """How the vectors of CG are kept."""

    gradient: Tensor

    @abstractmethod
    def first(self) -> _Search:
        """Return the search direction for the residual g."""

    @abstractmethod
    def search(self, res: Tensor) -> _Search:
        """Return the search direction for a residual."""

    @abstractmethod
    def square(self, v: Tensor, jv: Tensor) -> Tensor:
        """Return |v|^2."""

    @abstractmethod
    def lift(self, sjv: Tensor) -> Tensor:
        """Return J^T S J v."""

    @abstractmethod
    def push(self, x: Tensor) -> Tensor:
        """Return J x: like logits, float64."""

    @abstractmethod
    def norm(self, res: Tensor) -> float:
        """Return |res|."""

    def residual(self, x: Tensor, sjx: Tensor, damping: float) -> Tensor:
        """Return g - (F + lambda I) x."""
        return self.gradient - self.lift(sjx) - damping * x


class _Cotangents(_Space):
    """Every vector is J^T of something in logit space, and that is kept.

    g = J^T r and F v = J^T S J v, so x = J^T y, res = J^T q and v = J^T w. An iteration takes one
    product J J^T q, cheaper than a Fisher-vector product, and |res|^2 = q . (J J^T q).
    """

    def __init__(self, lin: Linearization) -> None:
        self._lin = lin
        self.gradient = lin.logit_gradients

    def first(self) -> _Search:
        square = self._lin.gradient_norm**2
        return _Search(self.gradient, self._lin.gradient_jvp, square, square)

    def search(self, res: Tensor) -> _Search:
        product = self._lin.kernel_product(res)
        square = self._lin.pulled_norm(res, product) ** 2
        return _Search(res, product, square, square)

    def square(self, v: Tensor, jv: Tensor) -> Tensor:
        return (v * jv).sum()

    def lift(self, sjv: Tensor) -> Tensor:
        return sjv

    def push(self, x: Tensor) -> Tensor:
        return self._lin.kernel_product(x, formed=False)

    def norm(self, res: Tensor) -> float:
        return self._lin.pulled_norm(res, self._lin.kernel_product(res))


class _Vectors(_Space):
    """Every vector has P numbers, as a preconditioner takes them."""

    def __init__(self, lin: Linearization, preconditioner: Preconditioner) -> None:
        self._lin, self._preconditioner = lin, preconditioner
        self.gradient = lin.gradient

    def first(self) -> _Search:
        return self.search(self.gradient)

    def search(self, res: Tensor) -> _Search:
        z = self._preconditioner(res)
        if not isinstance(z, Tensor) or z.shape != res.shape:
            raise EvalkitError(
                f"expected a preconditioner that returns a vector of length {len(res)}, found "
                f"{tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__}; return M^-1 res"
            )
        rho = float(torch.dot(res.double(), z.double()))
        square = norm(res) ** 2
        if square > 0 and not 0 < rho < math.inf:
            raise EvalkitError(
                f"expected a positive definite preconditioner, found res . M^-1 res = {rho:g}; "
                "return M^-1 res with M symmetric and positive definite"
            )
        return _Search(z, self._lin.jvp(z).double(), rho, square)

    def square(self, v: Tensor, jv: Tensor) -> Tensor:
        return v.double().square().sum()

    def lift(self, sjv: Tensor) -> Tensor:
        return self._lin.vjp(sjv)

    def push(self, x: Tensor) -> Tensor:
        return self._lin.jvp(x).double()

    def norm(self, res: Tensor) -> float:
        return norm(res)


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
