"""Factorisations of Gram matrices, from the matrix or from its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from scipy.linalg import qr
from scipy.linalg.lapack import dgeqp3, dpstrf
from threadpoolctl import ThreadpoolController
from torch import Tensor

from evalkit.factor import SMALLEST, GramFactor

CLEAR_GAP = 1e3
"""How many times the rounding the smallest direction is that makes a rank certain."""
HIDDEN = 1e3
"""How many times smaller than the rounding of K that of an eigensolver must be."""

FEW_ROWS = 512
"""Rows up to which one thread factorises a matrix."""

_THREADS = ThreadpoolController()


@contextmanager
def _one_thread(rows: int) -> Iterator[None]:
    """Keep LAPACK to one thread: SciPy and torch have threads that wait for each other's cores.

    Those of one library go on looking for work for a while after it has returned, on the cores that
    the other's then need. That costs more than several threads gain on matrices of this size; on
    small ones those of torch, too, wait for each other more than they work.

    Args:
        rows: M.
    """
    threads = torch.get_num_threads()
    wanted = 1 if rows <= FEW_ROWS else threads
    with _THREADS.limit(limits=1, user_api="blas"):
        torch.set_num_threads(wanted)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def factorize(
    gram: Tensor, tolerance: float = 0.0, unit: float = 2.0**-53, columns: float = math.inf
) -> GramFactor:
    """Factorise a positive semi-definite Gram matrix whose rows may differ by many magnitudes.

    With s = sqrt(diag K), the correlation matrix K / (s s^T) is factorised by Cholesky with
    complete pivoting, which reveals the rank independently of the gradient norms. The SVD of
    L = diag(s) L_c then works on norms rather than on their squares: an imbalance of 1e6 leaves
    ten digits in the smallest eigenvalue, where an eigensolver applied to K leaves four.

    Args:
        gram: K, (M, M) float64.
        tolerance: part of a row's squared norm, left after all rows before it, below which it
            counts as a combination of them; rounding in float64 always does.
        unit: the rounding of the evaluation that K comes from.
        columns: P, the numbers in a row of G.

    Returns:
        The factor; samples with zero gradient, duplicates and linear combinations of other
        samples reduce its rank.
    """
    matrix = gram.detach().cpu().numpy()
    squares = np.clip(np.diag(matrix), 0.0, None)
    scale = np.sqrt(np.where(squares < SMALLEST, 0.0, squares))
    safe = np.where(scale > 0, scale, 1.0)
    correlation = matrix / safe / safe[:, None]
    rounding = len(matrix) * float(np.finfo(np.float64).eps)
    with _one_thread(len(matrix)):
        lower, pivots, rank, _ = dpstrf(correlation, tol=max(tolerance, rounding), lower=1)
        cholesky = np.empty((len(matrix), rank))
        cholesky[pivots - 1] = np.tril(lower)[:, :rank]
        steps = scale[pivots - 1][:rank] * np.diag(lower)[:rank]
        whole = gram.detach().cpu()
        found = _eigenvalues(whole, steps, unit) or _singular_values(scale[:, None] * cholesky)
    vectors, eigenvalues = (one.to(gram.device) for one in found)
    largest = float(scale.max(initial=0.0))
    complete = len(eigenvalues) >= min(len(matrix), columns)
    return GramFactor(
        vectors,
        eigenvalues,
        norms=torch.from_numpy(scale).to(gram.device),
        squared=True,
        level=math.sqrt(max(tolerance, rounding, unit)) * largest,
        complete=complete,
        certain=complete,
        lost=len(eigenvalues) < rank,
    )


def _singular_values(rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return U and e of K = L L^T from the singular values of L."""
    vectors, singular, _ = torch.linalg.svd(torch.from_numpy(rows), full_matrices=False)
    keep = singular.square() > 0
    return vectors[:, keep], singular[keep].square()


def _eigenvalues(matrix: Tensor, steps: np.ndarray, unit: float) -> tuple[Tensor, Tensor] | None:
    """Return U and e of K itself, a third of the work, None where that may lose digits.

    An eigensolver leaves an error of the size of the largest eigenvalue in float64, which must be
    far below what K's own rounding does to the smallest.

    Args:
        matrix: K, (M, M).
        steps: the diagonal of L with K = L L^T, (rank,), which foresees the eigenvalues.
        unit: the rounding of the evaluation that K comes from.
    """
    least = HIDDEN * float(np.finfo(np.float64).eps) / unit
    if 0 < len(steps) == len(matrix) and np.min(steps) ** 2 > least * np.max(steps) ** 2:
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        if eigenvalues[0] > least * eigenvalues[-1]:
            return vectors.flip(1), eigenvalues.flip(0)
    return None


def factorize_rows(rows: Tensor) -> GramFactor:
    """Factorise K = G G^T from G itself, (M, P) float64: as :func:`factorize`, with all digits.

    QR of G^T, whose digits do not depend on the lengths of the rows, leaves a triangle R. Its
    columns, scaled to length one, are factorised by QR with column pivoting, which tells the rank,
    and the SVD of L = diag(|G_n|) R^T gives U and e = sigma^2. Directions of G down to 1e-14 of its
    rows are seen, where K = G G^T shows those down to 1e-7.

    Args:
        rows: G.

    Raises:
        LinAlgError: a number is NaN or infinite.
    """
    scale = _lengths(rows)
    scale = scale.where(scale.square() >= SMALLEST, 0.0)
    most = min(rows.shape)
    if most == 0:  # which LAPACK complains of in the terminal
        return factorize(rows.new_zeros(len(rows), len(rows)), columns=rows.shape[1])
    rounding = max(rows.shape) * float(np.finfo(np.float64).eps)
    with _one_thread(len(rows)):
        # Pivots of all P numbers would be as many reads of G: it is made small before.
        triangle = torch.linalg.qr(rows.T, mode="r").R / scale.where(scale > 0, 1.0)
        packed, pivots, *_ = dgeqp3(triangle.cpu().numpy())
        upper = np.triu(packed[:most])
        diagonal = np.abs(np.diag(upper))
        rank = int((diagonal > rounding).sum())
        lower = np.empty((len(rows), rank))
        lower[pivots - 1] = upper[:rank].T
        vectors, singular, _ = torch.linalg.svd(
            scale[:, None] * torch.from_numpy(lower).to(rows.device), full_matrices=False
        )
    keep = singular.square() > 0
    complete = int(keep.sum()) == most
    largest = float(scale.max()) if len(scale) else 0.0
    return GramFactor(
        vectors[:, keep],
        singular[keep].square(),
        norms=scale,
        squared=False,
        level=rounding * largest,
        complete=complete,
        certain=complete or (0 < rank < most and diagonal[rank - 1] > CLEAR_GAP * rounding),
        lost=int(keep.sum()) < rank,
    )


def _lengths(rows: Tensor) -> Tensor:
    """Return |G_n| of rows, (M,), refusing NaN and infinity: LAPACK finds rank zero, or prints."""
    lengths = rows.norm(dim=1)  # of large rows infinite, and their entries are not
    if not bool(lengths.isfinite().all()) and not bool(rows.isfinite().all()):
        raise torch.linalg.LinAlgError("rows that hold NaN or infinity")
    return lengths


def row_basis(rows: Tensor) -> Tensor:
    """Return orthonormal rows that span those of G, by QR with pivoting: (rank, P) float64.

    Args:
        rows: G, (M, P) float64; their lengths do not matter.

    Raises:
        LinAlgError: a number is NaN or infinite.
    """
    scale = _lengths(rows)
    unit_rows = rows / scale.where(scale > 0, 1.0)[:, None]
    with _one_thread(len(rows)):
        q, upper, _ = qr(unit_rows.cpu().numpy().T, mode="economic", pivoting=True)
    rounding = max(unit_rows.shape) * float(np.finfo(np.float64).eps)
    rank = int((np.abs(np.diag(upper)) > rounding).sum())
    return torch.from_numpy(np.ascontiguousarray(q[:, :rank].T)).to(rows.device)
