"""Systems of the natural gradient in logit space.

With S_n = B_n B_n^T and r_n = B_n rho_n, M = B^T J has F = M^T M and g = M^T rho, so

    x = (M^T M + lambda I)^-1 M^T rho = M^T (H + lambda I)^-1 rho,  H = M M^T = B^T (J J^T) B,

a system of at most N C equations, and x = J^T y with y = B (H + lambda I)^-1 rho.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from evalkit.factor import GramFactor, factorize, factorize_rows
from evalkit.linearization import Linearization
from evalkit.solvers.kernel import unit_cotangents

Solve = Callable[[Tensor], Tensor]
"""Maps a residual q, like logits, to B (H + lambda I)^-1 rho with q = B rho: like logits."""

SMALL_PIVOT = 1e-6
"""Part of an equation's diagonal, left after all before it, below which it counts as dependent."""

MOST_ROW_WORK = 2e9
"""Multiplications that factorise M itself, at most."""

SKETCH_FLOOR = 1e-6
"""Eigenvalues of the sketched H, scaled to a unit diagonal, below which they are rounding."""


class LogitSpace:
    """The matrix H of a linearization, (N C, N C), and solves with H + lambda I.

    Rows and columns are scaled to a unit diagonal, so that saturated samples keep their digits.

    Args:
        lin: the model and batch.
        kernel: J J^T, or a matrix near it.
    """

    def __init__(self, lin: Linearization, kernel: Tensor) -> None:
        self._lin = lin
        root = lin.likelihood.fisher_root(lin.logits, lin.targets)
        # A root of S for each label position; B is their block diagonal, never formed.
        self._root = root.reshape(-1, *root.shape[-2:])  # (positions, C, C)
        half = self._from_left(kernel)
        self._matrix = self._from_left(half.T)

    def _from_left(self, values: Tensor) -> Tensor:
        """Return B^T V: (N C, columns)."""
        blocks = values.reshape(*self._root.shape[:2], -1)
        return (self._root.transpose(1, 2) @ blocks).reshape(values.shape)

    def _seen(self) -> Tensor:
        """Return the rows that are not zero."""
        return (self._matrix.diagonal() > 0).nonzero().flatten()

    def _scaled(self, damping: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return H + lambda I scaled to a unit diagonal, the scales, and the rows that are seen."""
        seen = self._seen()
        scale = (self._matrix.diagonal()[seen] + damping).sqrt()
        matrix = self._matrix[seen[:, None], seen]
        matrix = (matrix + damping * torch.eye(len(seen)).to(matrix)) / scale / scale[:, None]
        return matrix, scale, seen

    def by_cholesky(self, damping: float) -> Solve | None:
        """Return the exact solve by Cholesky's method, None where equations depend on each other.

        It would then return a y with large parts that J^T maps to zero, but for rounding.
        """
        matrix, scale, seen = self._scaled(damping)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        pivots = factor.diagonal().square()
        if int(failed) != 0 or not len(seen) or float(pivots.min()) <= SMALL_PIVOT:
            return None

        def solve(right: Tensor) -> Tensor:
            scaled = (right / scale).unsqueeze(1)
            return torch.cholesky_solve(scaled, factor).squeeze(1) / scale

        return lambda residual: self._solved(residual, seen, solve)

    def by_eigenvalues(self, damping: float) -> Solve:
        """Return the solve without what H maps to zero, within rounding of the model's backward."""
        seen, eigen = self._seen(), self._eigen()
        return lambda residual: self._solved(
            residual, seen, lambda right: eigen.solve(right, damping)
        )

    def unresolved(self, damping: float) -> float:
        """Return the part of g^T (F + lambda I)^-1 g that eigenvalues near rounding leave open."""
        lin = self._lin
        rho = lin.likelihood.solve_root(lin.logits, lin.targets, lin.logit_gradients).flatten()
        return self._eigen().unresolved(rho[self._seen()], damping)

    @property
    def complete(self) -> bool:
        """Whether the eigenvalues above rounding are all that there can be."""
        return self._eigen().complete

    def _eigen(self) -> GramFactor:
        return self._lin.shared("logit space, eigenvalues", self._factorized)

    def _factorized(self) -> GramFactor:
        """Factorise H; small float64 evaluations form M itself, which keeps twice the digits."""
        lin, seen = self._lin, self._seen()
        if lin.logits.dtype == torch.float64 and len(seen) ** 2 * lin.num_params <= MOST_ROW_WORK:
            return factorize_rows(self._rows()[seen])
        rounding = 10 * torch.finfo(lin.logits.dtype).eps
        matrix = self._matrix[seen[:, None], seen]
        return factorize(matrix, rounding, lin.unit, lin.num_params)

    def _rows(self) -> Tensor:
        """Return M = B^T J, (N C, P)."""
        units = unit_cotangents(self._lin)
        outputs, samples = units.shape[:2]
        rows = self._lin.sample_gradients(units).view(outputs, samples, -1)
        return self._from_left(rows.transpose(0, 1).reshape(outputs * samples, -1))

    def preconditioner(self, damping: float) -> Solve:
        """Return an approximate solve, for a sketch of H in float32.

        Of each eigenvalue h it takes h / ((h + floor) (h + lambda + floor)) + 1 / h_max in place of
        1 / (h + lambda). What H maps to zero, x = J^T y does not know: it is left out where 1 / h
        or 1 / lambda would blow up its rounding errors. What a sketch misses is found as without.
        """
        matrix, scale, seen = self._scaled(damping)
        undamped = matrix - torch.diag(damping / scale.square())
        factor = _shifted_factor(matrix)
        # H (H + floor)^-1 first keeps what lies in the range of H, for the damped inverse.
        range_factor = factor if damping == 0 else _shifted_factor(undamped)
        largest = matrix.abs().sum(1).amax() if len(seen) else 1.0  # no less than h_max

        def solve(right: Tensor) -> Tensor:
            scaled = (right / scale).unsqueeze(1)
            within = undamped @ torch.cholesky_solve(scaled, range_factor)
            filtered = torch.cholesky_solve(within, factor)
            return (filtered + scaled / largest).squeeze(1) / scale

        return lambda residual: self._solved(residual, seen, solve)

    def _solved(self, residual: Tensor, seen: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        lin = self._lin
        right = lin.likelihood.solve_root(lin.logits, lin.targets, residual).flatten()
        whole = torch.zeros_like(right)
        whole[seen] = solve(right[seen])
        blocks = self._root @ whole.view(*self._root.shape[:2], 1)
        return blocks.view(residual.shape)


def _shifted_factor(matrix: Tensor) -> Tensor:
    """Return the Cholesky factor of a sketched matrix plus its floor.

    With fewer columns than rows rounding reaches further, and the floor is raised.
    """
    identity = torch.eye(len(matrix)).to(matrix)
    for floor in (SKETCH_FLOOR, 1e-3):
        factor, failed = torch.linalg.cholesky_ex(matrix + floor * identity)
        if int(failed) == 0:
            return factor
    return torch.linalg.cholesky(matrix + identity)
