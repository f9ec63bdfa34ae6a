"""The exact natural gradient by a direct solve in logit space, where that space is small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from evalkit.factor import factorize
from evalkit.linearization import Linearization
from evalkit.reductions import norm
from evalkit.settings import check_damping
from evalkit.solved import Solved

REFINEMENTS = 4
"""Solves with the recomputed residual, at most."""


def solve_directly(lin: Linearization, damping: float = 0.0, tolerance: float = 1e-6) -> Solved:
    """Solve (F + lambda I) x = g in logit space.

    With S_n = B_n B_n^T and r_n = B_n rho_n, M = B^T J has F = M^T M and g = M^T rho, so

        x = (M^T M + lambda I)^-1 M^T rho = M^T (H + lambda I)^-1 rho,  H = M M^T = B^T (J J^T) B,

    a system of at most N C equations, and x = J^T y with y = B (H + lambda I)^-1 rho. The residual
    is recomputed from x with products of the model's graph, and solved for while that lowers it.

    Args:
        lin: the model and batch; J J^T and H are computed once for all dampings.
        damping: lambda >= 0; 0 gives the pseudo-inverse.
        tolerance: converged when |g - (F + lambda I) x| <= tolerance |g|.

    Raises:
        EvalkitError: the damping is out of range.
    """
    damping = check_damping(damping)
    space = lin.shared("logit space", lambda: _LogitSpace(lin))
    solve = lin.shared(("logit space", damping), lambda: space.solver(damping))
    y = torch.zeros_like(lin.logit_gradients)
    iterations = 0
    x, residual, remaining = lin.vjp(y), lin.logit_gradients, lin.gradient_norm
    for _ in range(REFINEMENTS):
        if remaining <= tolerance * lin.gradient_norm:
            break
        iterations += 1
        refined = y + solve(residual)
        vector = lin.vjp(refined)
        left = lin.logit_gradients - lin.output_fisher(lin.jvp(vector)) - damping * refined
        length = norm(lin.vjp(left))
        if not length < remaining:
            break
        y, x, residual, remaining = refined, vector, left, length
    relative = remaining / lin.gradient_norm if lin.gradient_norm > 0 else 0.0
    converged = relative <= tolerance
    return Solved(
        cotangents=y,
        vector=x,
        solver="direct",
        iterations=iterations,
        converged=converged,
        relative_residual=relative,
        gammas=(),
        gamma_floor=lin.gamma_floor,
        status="residual" if converged else "breakdown",
    )


class _LogitSpace:
    """The matrix H of a linearization, (N C, N C), and solves with H + lambda I."""

    def __init__(self, lin: Linearization) -> None:
        self._lin = lin
        root = lin.likelihood.fisher_root(lin.logits, lin.targets)
        self._root = root.reshape(-1, *root.shape[-2:])  # (positions, C, C)
        half = self._from_left(lin.tangent_kernel)
        self._matrix = self._from_left(half.T)

    def _from_left(self, values: Tensor) -> Tensor:
        """Return B^T V: (N C, columns)."""
        blocks = values.reshape(*self._root.shape[:2], -1)
        return (self._root.transpose(1, 2) @ blocks).reshape(values.shape)

    def solver(self, damping: float) -> Callable[[Tensor], Tensor]:
        """Return the map from a residual q, like logits, to B (H + lambda I)^-1 rho, q = B rho.

        Rows and columns are scaled to a unit diagonal, so that saturated samples keep their digits.
        Where Cholesky's method then meets a pivot that is rounding, the eigenvalues are taken.
        """
        diagonal = self._matrix.diagonal()
        seen = (diagonal > 0).nonzero().flatten()
        scale = (diagonal[seen] + damping).sqrt()
        matrix = self._matrix[seen[:, None], seen]
        matrix = (matrix + damping * torch.eye(len(seen)).to(matrix)) / scale / scale[:, None]
        factor, failed = torch.linalg.cholesky_ex(matrix)
        pivots = factor.diagonal().square()
        limit = len(seen) * torch.finfo(torch.float64).eps
        if int(failed) == 0 and len(seen) and float(pivots.min()) > limit:

            def solve(right: Tensor) -> Tensor:
                scaled = (right / scale).unsqueeze(1)
                return torch.cholesky_solve(scaled, factor).squeeze(1) / scale
        else:
            eigen = self._lin.shared(
                "logit space, eigenvalues", lambda: factorize(self._matrix[seen[:, None], seen])
            )

            def solve(right: Tensor) -> Tensor:
                return eigen.solve(right, damping)

        return lambda residual: self._solved(residual, seen, solve)

    def _solved(self, residual: Tensor, seen: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        lin = self._lin
        right = lin.likelihood.solve_root(lin.logits, lin.targets, residual).flatten()
        whole = torch.zeros_like(right)
        whole[seen] = solve(right[seen])
        blocks = self._root @ whole.view(*self._root.shape[:2], 1)
        return blocks.view(residual.shape)
