"""Preconditioners of conjugate gradients: one that is given, and a sketch of the tangent kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.layers.sketches import SketchSize
from evalkit.linearization import Linearization
from evalkit.reductions import norm
from evalkit.solvers.logit_space import LogitSpace
from evalkit.solvers.sketch import sketched_kernel

Preconditioner = Callable[[Tensor], Tensor]
"""Maps a residual, (P,), to M^-1 res, (P,)."""


@dataclass(frozen=True, eq=False)
class Search:
    """Where a residual leads.

    Attributes:
        z: M^-1 res, kept like the residual.
        jz: J z, like logits.
        square: |res|^2, or an estimate.
    """

    z: Tensor
    jz: Tensor
    square: float


class Given:
    """M^-1 as a user's function of vectors with P numbers.

    Args:
        lin: the model and batch.
        function: maps res to M^-1 res, with M symmetric and positive definite.
    """

    memory = 1
    """With M symmetric, what is conjugate to the last direction is conjugate to all before."""

    def __init__(self, lin: Linearization, function: Preconditioner) -> None:
        self._lin = lin
        self._function = function

    def first(self) -> Search:
        """Return M^-1 g."""
        return self.search(self._lin.gradient)

    def search(self, res: Tensor) -> Search:
        """Return M^-1 res.

        Raises:
            EvalkitError: the function is no preconditioner.
        """
        z = self._function(res)
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
        return Search(z, self._lin.jvp(z).double(), square)


class Sketched:
    """A solve with a sketch of the tangent kernel, on cotangents.

    With H = B^T (J J^T) B and H~ its sketch (:mod:`evalkit.solvers.logit_space`), the residual
    J^T q leads to z = J^T B H~^-1 rho, q = B rho: along J^T B H^-1 rho CG would end at once.
    Solutions stay J^T of something, so they are those of plain CG.

    Args:
        lin: the model and batch.
        damping: lambda.
        size: how large the sketch is.
    """

    memory = None
    """The map of the residual is not symmetric: a direction is to be conjugate to all before it."""

    def __init__(self, lin: Linearization, damping: float, size: SketchSize) -> None:
        self._lin = lin
        # The sketch and its matrix serve every damping, the factor one.
        self._kernel = lin.shared(("sketch", size), lambda: sketched_kernel(lin, size))
        space = lin.shared(
            ("sketched space", size), lambda: LogitSpace.of_kernel(lin, self._kernel)
        )
        self._solve = lin.shared(
            ("sketched solve", size, damping), lambda: space.preconditioner(damping)
        )

    def first(self) -> Search:
        """Return g itself, whose product scoring needs anyway."""
        lin = self._lin
        return Search(lin.logit_gradients, lin.gradient_jvp, lin.gradient_norm**2)

    def search(self, res: Tensor) -> Search:
        """Return the solution with the sketch, or the residual where that is no descent."""
        z = self._solve(res)
        jz = self._lin.kernel_product(z)
        estimate = (res.flatten() @ self._kernel @ res.flatten()).clamp_min(0)
        # One read for both, so that a GPU is waited for once.
        rho, square = torch.stack([(res * jz).sum(), estimate]).tolist()
        if 0 < rho < math.inf:
            return Search(z, jz, square)
        # The sketch misses what is left: along the residual itself it always goes down.
        product = self._lin.kernel_product(res)
        return Search(res, product, self._lin.pulled_norm(res, product) ** 2)
