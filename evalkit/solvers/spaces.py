"""How the vectors of conjugate gradients are kept, and what directs the search."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.linearization import Linearization
from evalkit.reductions import norm
from evalkit.solvers.logit_space import LogitSpace

Preconditioner = Callable[[Tensor], Tensor]
"""Maps a residual, (P,), to M^-1 res, (P,)."""


@dataclass(frozen=True)
class Search:
    """Where a residual leads: z = M^-1 res.

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


@dataclass(frozen=True)
class Step:
    """A direction v that CG went along, and the search that led to it.

    Attributes:
        v: like the residual.
        jv: J v, like logits.
        sjv: S J v, like logits.
        curvature: v^T (F + lambda I) v.
        rho: res^T z of the search.
    """

    v: Tensor
    jv: Tensor
    sjv: Tensor
    curvature: Tensor
    rho: float


class Space(ABC):
    """How the vectors of CG are kept.

    Args:
        lin: the model and batch.

    Attributes:
        gradient: g.
    """

    gradient: Tensor

    def __init__(self, lin: Linearization) -> None:
        self.lin = lin

    @abstractmethod
    def first(self) -> Search:
        """Return the search direction for the residual g."""

    @abstractmethod
    def search(self, res: Tensor, recomputed: bool) -> Search:
        """Return the search direction for a residual.

        Args:
            res: the residual.
            recomputed: it is not from a recurrence, and its length is to be exact.
        """

    def next(
        self, found: Search, last: Step, x: Tensor, jx: Tensor, restart: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the next v = z + beta v, beta = res_new^T z_new / res^T z, and J v.

        Args:
            found: the search direction.
            last: the step that was taken.
            x: where it led.
            jx: J x.
            restart: forget the steps so far.
        """
        beta = 0.0 if restart else found.rho / last.rho
        return found.z + beta * last.v, found.jz + beta * last.jv

    def descent(self, found: Search, res: Tensor, jv: Tensor) -> Tensor | float:
        """Return res^T v, which is res^T z where the residual is orthogonal to all before."""
        return found.rho

    def stalled(self, fall: Tensor) -> bool:
        """Return whether rounding is all that steps bring any more, so that it is time to check.

        Args:
            fall: of twice the quadratic model by the last step.
        """
        return False

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


class Cotangents(Space):
    """Every vector is J^T of something in logit space, and that is kept.

    g = J^T r and F v = J^T S J v, so x = J^T y, res = J^T q and v = J^T w. An iteration takes one
    product J J^T q, cheaper than a Fisher-vector product, and |res|^2 = q . (J J^T q).
    """

    def __init__(self, lin: Linearization) -> None:
        super().__init__(lin)
        self.gradient = lin.logit_gradients

    def first(self) -> Search:
        """Return g itself."""
        square = self.lin.gradient_norm**2
        return Search(self.gradient, self.lin.gradient_jvp, square, square)

    def search(self, res: Tensor, recomputed: bool) -> Search:
        """Return the residual itself."""
        product = self.lin.kernel_product(res)
        square = self.lin.pulled_norm(res, product) ** 2
        return Search(res, product, square, square)

    def square(self, v: Tensor, jv: Tensor) -> Tensor:
        """Return w . (J v)."""
        return (v * jv).sum()

    def lift(self, sjv: Tensor) -> Tensor:
        """Return S J v."""
        return sjv

    def push(self, x: Tensor) -> Tensor:
        """Return J J^T y, by the model's own product."""
        return self.lin.kernel_product(x, formed=False)

    def norm(self, res: Tensor) -> float:
        """Return sqrt(q . (J J^T q))."""
        return self.lin.pulled_norm(res, self.lin.kernel_product(res))


class Sketched(Cotangents):
    """Cotangents, preconditioned by a solve with a sketch of the tangent kernel.

    With H = B^T (J J^T) B and H~ its sketch (:mod:`evalkit.solvers.logit_space`), the residual
    J^T q leads to z = J^T B H~^-1 rho, q = B rho: along J^T B H^-1 rho CG would end at once. This
    map of the residual is not symmetric, so each direction is made conjugate to all before, not to
    the last alone; they are as many numbers as there are logits.

    Solutions stay J^T of something, so they are those of plain CG. Its first step is g, too, whose
    product scoring needs anyway.

    Args:
        lin: the model and batch.
        damping: lambda.
    """

    def __init__(self, lin: Linearization, damping: float) -> None:
        super().__init__(lin)
        self._damping = damping
        space = lin.shared("sketched space", lambda: LogitSpace(lin, lin.sketched_kernel))
        self._solve = lin.shared(("sketched space", damping), lambda: space.preconditioner(damping))
        self._steps: list[Step] = []
        self._falls: list[float] = []

    def stalled(self, fall: Tensor) -> bool:
        """Return whether three steps in a row were within rounding of all steps together.

        A step along rounding is as long as it likes; a tolerance that cannot be met would let such
        steps go on.
        """
        self._falls.append(float(fall))
        least = (10 * torch.finfo(self.lin.logits.dtype).eps) ** 2
        if len(self._falls) < 4 or max(self._falls[-3:]) > least * sum(self._falls):
            return False
        self._falls = [sum(self._falls)]
        return True

    def search(self, res: Tensor, recomputed: bool) -> Search:
        """Return the solution with the sketch, or the residual where that is no descent."""
        z = self._solve(res)
        jz = self.lin.kernel_product(z)
        estimate = (res.flatten() @ self.lin.sketched_kernel @ res.flatten()).clamp_min(0)
        rho, square = torch.stack([(res * jz).sum(), estimate]).tolist()
        if not 0 < rho < math.inf:
            return super().search(res, recomputed)
        return Search(z, jz, rho, self.norm(res) ** 2 if recomputed else square)

    def next(
        self, found: Search, last: Step, x: Tensor, jx: Tensor, restart: bool
    ) -> tuple[Tensor, Tensor]:
        """Return z without its parts along all steps so far, in the inner product of A.

        Where rounding is all that remains, the steps have reached everything: they start anew. Of
        a restart x remains, so that gamma, which knows no length of x, keeps falling.
        """
        if not restart:
            self._steps.append(last)
            v, jv = self._conjugate(found)
            if bool(self._curvature(v, jv) > 1e-12 * self._curvature(found.z, found.jz)):
                return v, jv
        self._steps = [Step(x, jx, self.lin.output_fisher(jx), self._curvature(x, jx), 0.0)]
        return self._conjugate(found)

    def _conjugate(self, found: Search) -> tuple[Tensor, Tensor]:
        v, jv = found.z, found.jz
        for step in self._steps:
            inner = (jv * step.sjv).sum() + self._damping * (step.v * jv).sum()
            part = inner / step.curvature
            v, jv = v - part * step.v, jv - part * step.jv
        return v, jv

    def _curvature(self, v: Tensor, jv: Tensor) -> Tensor:
        """Return v^T (F + lambda I) v."""
        return (jv * self.lin.output_fisher(jv)).sum() + self._damping * (v * jv).sum()

    def descent(self, found: Search, res: Tensor, jv: Tensor) -> Tensor:
        """Return q . (J v): the step along v is the best one whatever rounding left in v."""
        return (res * jv).sum()

    def norm(self, res: Tensor) -> float:
        """Return |J^T q|, formed: the product has no other use here."""
        return norm(self.lin.vjp(res))


class Vectors(Space):
    """Every vector has P numbers, as a preconditioner takes them.

    Args:
        lin: the model and batch.
        preconditioner: M^-1.
    """

    def __init__(self, lin: Linearization, preconditioner: Preconditioner) -> None:
        super().__init__(lin)
        self._preconditioner = preconditioner
        self.gradient = lin.gradient

    def first(self) -> Search:
        """Return M^-1 g."""
        return self.search(self.gradient, recomputed=True)

    def search(self, res: Tensor, recomputed: bool) -> Search:
        """Return M^-1 res.

        Raises:
            EvalkitError: the preconditioner is not one.
        """
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
        return Search(z, self.lin.jvp(z).double(), rho, square)

    def square(self, v: Tensor, jv: Tensor) -> Tensor:
        """Return |v|^2."""
        return v.double().square().sum()

    def lift(self, sjv: Tensor) -> Tensor:
        """Return J^T S J v."""
        return self.lin.vjp(sjv)

    def push(self, x: Tensor) -> Tensor:
        """Return J x."""
        return self.lin.jvp(x).double()

    def norm(self, res: Tensor) -> float:
        """Return |res|."""
        return norm(res)
