"""Systems of the natural gradient in logit space.

With S_n = B_n B_n^T and r_n = B_n rho_n, M = B^T J has F = M^T M and g = M^T rho, so

    x = (M^T M + lambda I)^-1 M^T rho = M^T (H + lambda I)^-1 rho,  H = M M^T = B^T (J J^T) B,

a system of at most N C equations, and x = J^T y with y = B (H + lambda I)^-1 rho.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from evalkit.evaluation.full_precision import full_precision
from evalkit.factor import GramFactor
from evalkit.factorization import factorize, factorize_rows
from evalkit.linearization import Linearization

Solve = Callable[[Tensor], Tensor]
"""Maps a residual q, like logits, to B (H + lambda I)^-1 rho with q = B rho: like logits."""

SMALL_PIVOT = 1e-6
"""Part of an equation's diagonal, left after all before it, below which it counts as dependent."""

MOST_ROW_WORK = 2e9
"""Multiplications that factorise M itself, at most."""

SKETCH_FLOOR = 1e-6
"""Eigenvalues of the sketched H, scaled to a unit diagonal, below which they are rounding."""


class LogitSpace:
    """The matrix H of a linearization, and solves with H + lambda I.

    Equations that say nothing are left out. Rows and columns are scaled to a unit diagonal, so that
    saturated samples keep their digits.

    Args:
        lin: the model and batch.
        matrix: H, or a matrix near it, of some equations.
        places: which of the N C equations these are, in the order of the logits.

    Attributes:
        matrix: H of the equations that say something.
        places: which these are.
    """

    def __init__(self, lin: Linearization, matrix: Tensor, places: Tensor) -> None:
        self._lin = lin
        seen = matrix.diagonal() > 0
        whole = bool(seen.all())
        self.matrix = matrix if whole else matrix[seen][:, seen]
        self.places = places if whole else places[seen]

    @classmethod
    @full_precision()
    def exact(cls, lin: Linearization) -> LogitSpace:
        """Return the space with H itself: the Gram matrix of J_n^T c for the columns c of B_n."""
        columns, places = _columns(lin)
        return cls(lin, lin.inner_products(columns), places)

    @classmethod
    def of_kernel(cls, lin: Linearization, kernel: Tensor) -> LogitSpace:
        """Return the space with H of a matrix near J J^T, (N C, N C).

        Args:
            lin: the model and batch.
            kernel: the matrix.
        """
        root = _roots(lin)

        def from_left(values: Tensor) -> Tensor:
            blocks = values.reshape(*root.shape[:2], -1)
            return (root.transpose(1, 2) @ blocks).reshape(values.shape)

        matrix = from_left(from_left(kernel).T)
        return cls(lin, matrix, torch.arange(len(matrix), device=matrix.device))

    def depth(self, y: Tensor) -> float:
        """Return g^T J^T y as H has it.

        Args:
            y: like logits, of a solve.
        """
        return float(self._equations(self._lin.logit_gradients) @ self.matrix @ self._equations(y))

    def _scaled(self, damping: float) -> tuple[Tensor, Tensor]:
        """Return H + lambda I scaled to a unit diagonal, and the scales."""
        scale = (self.matrix.diagonal() + damping).sqrt()
        matrix = (self.matrix / scale).div_(scale[:, None])
        matrix.diagonal().fill_(1.0)
        return matrix, scale

    def by_cholesky(self, damping: float) -> Solve | None:
        """Return the exact solve by Cholesky's method, None where equations depend on each other.

        It would then return a y with large parts that J^T maps to zero, but for rounding.
        """
        matrix, scale = self._scaled(damping)
        factor, failed = torch.linalg.cholesky_ex(matrix, upper=True)
        pivots = factor.diagonal().square()
        if int(failed) != 0 or not len(scale) or float(pivots.min()) <= SMALL_PIVOT:
            return None

        def solve(right: Tensor) -> Tensor:
            scaled = (right / scale).unsqueeze(1)
            # Not cholesky_solve, which copies the factor each time.
            half = torch.linalg.solve_triangular(factor.T, scaled, upper=False)
            return torch.linalg.solve_triangular(factor, half, upper=True).squeeze(1) / scale

        return lambda residual: self._solved(residual, solve)

    def by_eigenvalues(self, damping: float) -> Solve:
        """Return the solve without what H maps to zero, within rounding of the model's backward."""
        eigen = self._eigen()
        return lambda residual: self._solved(residual, lambda right: eigen.solve(right, damping))

    def unresolved(self, damping: float) -> float:
        """Return the part of g^T (F + lambda I)^-1 g that eigenvalues near rounding leave open."""
        return self._eigen().unresolved(self._equations(self._lin.logit_gradients), damping)

    @property
    def complete(self) -> bool:
        """Whether the eigenvalues above rounding are all that there can be."""
        return self._eigen().complete

    def _eigen(self) -> GramFactor:
        return self._lin.shared("logit space, eigenvalues", self._factorized)

    def _factorized(self) -> GramFactor:
        """Factorise H; small float64 evaluations form M itself, which keeps twice the digits."""
        lin = self._lin
        work = len(self.places) ** 2 * lin.num_params
        if lin.logits.dtype == torch.float64 and work <= MOST_ROW_WORK:
            columns, places = _columns(lin)
            return factorize_rows(lin.sample_gradients(columns)[torch.isin(places, self.places)])
        rounding = 10 * torch.finfo(lin.logits.dtype).eps
        return factorize(self.matrix, rounding, lin.unit, lin.num_params)

    def preconditioner(self, damping: float) -> Solve:
        """Return an approximate solve, for a sketch of H in float32.

        Of each eigenvalue h it takes h / ((h + floor) (h + lambda + floor)) + 1 / h_max in place of
        1 / (h + lambda). What H maps to zero, x = J^T y does not know: it is left out where 1 / h
        or 1 / lambda would blow up its rounding errors. What a sketch misses is found as without.
        """
        matrix, scale = self._scaled(damping)
        undamped = matrix - torch.diag(damping / scale.square())
        factor = _shifted_factor(matrix)
        # H (H + floor)^-1 first keeps what lies in the range of H, for the damped inverse.
        range_factor = factor if damping == 0 else _shifted_factor(undamped)
        largest = matrix.abs().sum(1).amax() if len(scale) else 1.0  # no less than h_max

        def solve(right: Tensor) -> Tensor:
            scaled = (right / scale).unsqueeze(1)
            within = undamped @ torch.cholesky_solve(scaled, range_factor)
            filtered = torch.cholesky_solve(within, factor)
            return (filtered + scaled / largest).squeeze(1) / scale

        return lambda residual: self._solved(residual, solve)

    def _equations(self, values: Tensor) -> Tensor:
        """Return the right sides rho of the equations for q = B rho, like logits."""
        lin = self._lin
        return lin.likelihood.solve_root(lin.logits, lin.targets, values).flatten()[self.places]

    def _solved(self, residual: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        root = _roots(self._lin)
        whole = root.new_zeros(residual.numel())
        whole[self.places] = solve(self._equations(residual))
        return (root @ whole.view(*root.shape[:2], 1)).view(residual.shape)


def _roots(lin: Linearization) -> Tensor:
    """Return B of every position of every sample: (N T, C, C)."""

    def compute() -> Tensor:
        root = lin.likelihood.fisher_root(lin.logits, lin.targets)
        return root.reshape(-1, *root.shape[-2:])

    return lin.shared("roots of S", compute)


def _columns(lin: Linearization) -> tuple[Tensor, Tensor]:
    """Return the columns of every B_n as cotangents, and the places of their equations.

    Of softmax outputs one column of each B_n is zero, another in each sample: it comes last.
    Cotangents that are zero in all samples, as those of positions without a label, are left out.

    Returns:
        c, (K, N, ..., C) float64, and places in the order of the logits, (K N,).
    """
    samples, outputs = len(lin.logits), lin.logits.shape[-1]
    root = _roots(lin).view(samples, -1, outputs, outputs)
    zero = (root == 0).all(2)  # (N, T, C)
    order = zero.int().argsort(dim=2, stable=True)
    root = root.gather(3, order.unsqueeze(2).expand_as(root))
    positions = root.shape[1]
    columns = root.new_zeros(positions, outputs, samples, positions, outputs)
    for t in range(positions):  # a cotangent is zero at all other positions
        columns[t, :, :, t] = root[:, t].movedim(2, 0)
    columns = columns.view(-1, *lin.logits.shape)
    places = torch.arange(zero.numel(), device=zero.device).view(zero.shape).gather(2, order)
    places = places.permute(1, 2, 0).reshape(len(columns), samples)
    seen = (columns != 0).flatten(1).any(1)
    seen[0] = True
    return columns[seen], places[seen].flatten()


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
