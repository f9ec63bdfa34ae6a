"""Second moments of vectors, decomposed, and how far rounding moves them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from evalkit.curvature.noise import Moments
from evalkit.factor import DECOMPOSED

NEAR = 8.0
"""Times the cut-off up to which it may be rounding that an eigenvalue is above it."""
FEW = 3
"""Times as many entries as vectors from which on a factor is decomposed by its vectors."""


@dataclass
class Sums:
    """sum v v^T over vectors that come in parts; a few vectors are kept as they are.

    Attributes:
        rows: the vectors so far, (groups, m, size) each.
        matrix: their sum of squares, (groups, size, size), once there are too many.
        count: how many there are.
    """

    rows: list[Tensor] = field(default_factory=list)
    matrix: Tensor | None = None
    count: int = 0

    def add(self, vectors: Tensor) -> None:
        """Add vectors, (groups, m, size), brought to float64."""
        vectors = vectors.double()
        self.count += vectors.shape[1]
        if self.matrix is None and FEW * self.count <= vectors.shape[2]:
            self.rows.append(vectors)
            return
        for rows in (*self.rows, vectors):
            product = rows.mT @ rows
            self.matrix = product if self.matrix is None else self.matrix + product
        self.rows = []


@dataclass(frozen=True, eq=False)
class Eigen:
    """A positive semi-definite factor of each group, Q diag(l) Q^T, and how far rounding moves it.

    Attributes:
        vectors: Q, (groups, size, rank) with orthonormal columns; the factor is zero beside them.
        values: l, and 0 for what is beside Q: (groups, rank + 1); what is at most largest x size x
            eps is rounding, and 0.
        kept: whether l is not 0.
        void: whether l is 0 without rounding, as there are fewer vectors than entries.
        hazy: some l may be above the cut-off by rounding, that of the evaluation.
        variances: the mean square of what rounding adds to entry (i, j) of Q^T M Q, where i is
            summed over what is beside Q in the last row: (groups, rank + 1, rank + 1).
        mean: tr M / size, (groups,).
    """

    vectors: Tensor
    values: Tensor
    kept: Tensor
    void: Tensor
    hazy: bool
    variances: Tensor
    mean: Tensor

    @property
    def beside(self) -> bool:
        """Whether there is something beside Q."""
        return self.vectors.shape[2] < self.vectors.shape[1]


def decomposed(sums: Sums, moments: Moments, scale: float, unit: float) -> Eigen:
    """Return the eigendecomposition of a factor, scale x sum v v^T.

    With v moved by random parts of mean square m in each direction, an entry of Q^T M Q moves by
    scale m (l_i + l_j) in the mean square, and the diagonal by the sum of their squares besides.

    Args:
        sums: the vectors v.
        moments: of them.
        scale: what the factor is a multiple of the sum by.
        unit: the rounding of the evaluation.
    """
    if sums.matrix is None:
        rows = torch.cat(sums.rows, 1)
        vectors, singular, _ = torch.linalg.svd(rows.mT, full_matrices=False)
        values = scale * singular.square()
    else:
        values, vectors = torch.linalg.eigh(scale * sums.matrix)
    size, beside = vectors.shape[1], vectors.shape[1] - vectors.shape[2]
    values, kept, hazy = cut_off(values, size, unit)
    largest = values.amax(1, keepdim=True)
    pairs = values[:, :, None] + values[:, None, :]
    variances = scale * moments.mean_move(size) * pairs
    some = kept[:, :, None] | kept[:, None, :]
    variances = variances + some * (DECOMPOSED * largest[:, :, None]) ** 2 / size
    variances[:, -1] *= beside
    shift = (scale * moments.shift(size)) ** 2 * torch.eye(values.shape[1]).to(values)
    if beside and not hazy and bool(kept[:, :-1].all()):
        # As many vectors as directions: moved, they still span no more, and these only turn.
        shift[-1, -1] = 0.0
    variances += shift
    empty = void(values, size - sums.count - beside)
    return Eigen(vectors, values, kept, empty, hazy, variances, values.sum(1) / size)


def cut_off(values: Tensor, size: int, unit: float) -> tuple[Tensor, Tensor, bool]:
    """Return eigenvalues without rounding, and the fields ``kept`` and ``hazy`` of :class:`Eigen`.

    Rounding is what a damping near zero would find instead of zeros.

    Args:
        values: (groups, rank).
        size: of the factor.
        unit: the rounding of the evaluation.
    """
    largest, eps = values.amax(1, keepdim=True).clamp_min(0.0), torch.finfo(torch.float64).eps
    values = torch.cat([values, torch.zeros_like(largest)], 1)
    kept = values > largest * size * eps
    hazy = bool((kept & (values <= largest * size * max(2 * unit, NEAR * eps))).any())
    return values.where(kept, 0.0), kept, hazy


def void(values: Tensor, count: int) -> Tensor:
    """Return which values, those beside the basis last, are 0 without rounding.

    Args:
        values: (groups, rank + 1), rising.
        count: of those that are in the basis.
    """
    found = torch.zeros_like(values, dtype=torch.bool)
    found[:, : max(0, count)] = True
    found[:, -1] = True
    return found
