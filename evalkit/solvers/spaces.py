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

Preconditioner = Callable[[Tensor], Tensor]
"""Maps a residual, (P,), to M^-1 res, (P,)."""


@dataclass(frozen=True, eq=False)
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


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction v for CG to go along.

    Attributes:
        v: like the residual.
        jv: J v, like logits.
    """

    v: Tensor
    jv: Tensor


@dataclass(frozen=True, eq=False)
class Step(Direction):
    """A direction that CG went along, and the search that led to it.

    Attributes:
        sjv: S J v, like logits.
        curvature: v^T (F + lambda I) v.
        rho: res^T z of the search.
    """

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

    def next(self, found: Search, last: Step, x: Tensor, jx: Tensor, restart: bool) -> Direction:
        """Return the next v = z + beta v, beta = res_new^T z_new / res^T z.

        Args:
            found: the search direction.
            last: the step that was taken.
            x: where it led.
            jx: J x.
            restart: forget the steps so far.
        """
        beta = 0.0 if restart else found.rho / last.rho
        return Direction(found.z + beta * last.v, found.jz + beta * last.jv)

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
        """Return J J^T y."""
        return self.lin.kernel_product(x)

    def norm(self, res: Tensor) -> float:
        """Return sqrt(q . (J J^T q))."""
        return self.lin.pulled_norm(res, self.lin.kernel_product(res))


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
