"""Conjugate gradients directed by a sketch of the tangent kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evalkit.linearization import Linearization
from evalkit.reductions import norm
from evalkit.solvers.logit_space import LogitSpace
from evalkit.solvers.spaces import Cotangents, Direction, Search, Step


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

    def next(self, found: Search, last: Step, x: Tensor, jx: Tensor, restart: bool) -> Direction:
        """Return z without its parts along all steps so far, in the inner product of A.

        Where rounding is all that remains, the steps have reached everything: they start anew. Of
        a restart x remains, so that gamma, which knows no length of x, keeps falling.
        """
        if not restart:
            self._steps.append(last)
            way = self._conjugate(found)
            if bool(self._curvature(way.v, way.jv) > 1e-12 * self._curvature(found.z, found.jz)):
                return way
        self._steps = [Step(x, jx, self.lin.output_fisher(jx), self._curvature(x, jx), 0.0)]
        return self._conjugate(found)

    def _conjugate(self, found: Search) -> Direction:
        v, jv = found.z, found.jz
        for step in self._steps:
            inner = (jv * step.sjv).sum() + self._damping * (step.v * jv).sum()
            part = inner / step.curvature
            v, jv = v - part * step.v, jv - part * step.jv
        return Direction(v, jv)

    def _curvature(self, v: Tensor, jv: Tensor) -> Tensor:
        """Return v^T (F + lambda I) v."""
        return (jv * self.lin.output_fisher(jv)).sum() + self._damping * (v * jv).sum()

    def descent(self, found: Search, res: Tensor, jv: Tensor) -> Tensor:
        """Return q . (J v): the step along v is the best one whatever rounding left in v."""
        return (res * jv).sum()

    def norm(self, res: Tensor) -> float:
        """Return |J^T q|, formed: the product has no other use here."""
        return norm(self.lin.vjp(res))
