"""Factorised Gram matrix: one decomposition, regularised solves for every damping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from torch import Tensor


@dataclass(frozen=True)
class GramFactor:
    """Eigendecomposition K = U diag(e) U^T of a Gram matrix, restricted to its range.

    Attributes:
        vectors: U, (M, rank) float64, orthonormal columns.
        eigenvalues: e, (rank,) float64, positive, falling.
    """

    vectors: Tensor
    eigenvalues: Tensor

    @property
    def rank(self) -> int:
        """Number of linearly independent per-sample gradients."""
        return len(self.eigenvalues)

    def solve(self, right: Tensor, damping: float) -> Tensor:
        """Return U diag(1 / (e + lambda)) U^T b: (M,).

        This is (K + lambda I)^-1 b without its part in the null space of K. That part is mapped
        to zero by G^T, so no update loses anything, and duplicates cannot blow it up.

        Args:
            right: b, (M,).
            damping: lambda >= 0; 0 gives the pseudo-inverse.
        """
        right = right.double()
        return self.vectors @ ((self.vectors.T @ right) / (self.eigenvalues + damping))


def factorize(gram: Tensor, tolerance: float = 0.0) -> GramFactor:
    """Factorise a positive semi-definite Gram matrix whose rows may differ by many magnitudes.

    With s = sqrt(diag K), the correlation matrix K / (s s^T) is factorised by Cholesky with
    complete pivoting, which reveals the rank independently of the gradient norms. The SVD of
    L = diag(s) L_c then works on norms rather than on their squares: an imbalance of 1e6 leaves
    ten digits in the smallest eigenvalue, where an eigensolver applied to K leaves four.

    Args:
        gram: K, (M, M) float64.
        tolerance: part of a row's squared norm, left after all rows before it, below which it
            counts as a combination of them; rounding in float64 always does.

    Returns:
        The factor; samples with zero gradient, duplicates and linear combinations of other
        samples reduce its rank.
    """
    matrix = gram.detach().cpu().numpy()
    scale = np.sqrt(np.clip(np.diag(matrix), 0.0, None))
    safe = np.where(scale > 0, scale, 1.0)
    correlation = matrix / safe / safe[:, None]
    rounding = len(matrix) * float(np.finfo(np.float64).eps)
    lower, pivots, rank, _ = dpstrf(correlation, tol=max(tolerance, rounding), lower=1)
    cholesky = np.empty((len(matrix), rank))
    cholesky[pivots - 1] = np.tril(lower)[:, :rank]
    vectors, singular, _ = torch.linalg.svd(
        torch.from_numpy(scale[:, None] * cholesky), full_matrices=False
    )
    keep = singular > 0
    return GramFactor(vectors[:, keep].to(gram.device), singular[keep].square().to(gram.device))
