"""Leading singular pairs of a map between symmetric matrices, which is known by its products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS, RESTARTS = 24, 40
"""Directions that are held at a time, and how often a search goes on from the best of them."""
KEPT = 6
"""Of those, beside the pairs that are looked for."""
RESIDUAL = 1e-13
"""At which a pair is found, as a part of its squared singular value."""

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Singular:
    """Leading singular pairs of a map R of each group, the largest first.

    Attributes:
        right: v, (count, groups, m, m) symmetric, of norm 1 or 0.
        left: R v.
        squares: the squared singular values, (count, groups).
        gaps: by how much the change of a pair exceeds that of R, both as parts of themselves: the
            square over its distance to the nearest other, (count, groups).
        residuals: |R^T R v - square x v| / square, at least :data:`RESIDUAL`, (count, groups).
    """

    right: Tensor
    left: Tensor
    squares: Tensor
    gaps: Tensor
    residuals: Tensor


def leading(forward: Map, back: Map, starts: Sequence[Tensor], count: int = 1) -> Singular:
    """Return leading singular pairs by a Lanczos search with thick restarts.

    The vectors are matrices with the Frobenius product. Of pairs with the same singular value no
    more are found than there are starts.

    Args:
        forward: R, of symmetric matrices (groups, m, m).
        back: R^T.
        starts: where to start, (groups, m, m) each and symmetric.
        count: how many are looked for.
    """
    size = starts[0].shape[1]
    most = size * (size + 1) // 2
    basis: list[Tensor] = []
    for start in starts[:most]:
        basis.append(_beside(start, basis))
    images: list[Tensor] = []
    before = torch.full((count, len(starts[0])), torch.inf).to(starts[0])
    for _ in range(RESTARTS):
        while len(images) < min(max(STEPS, count + KEPT + 1), len(basis)):
            images.append(forward(basis[len(images)]))
            if len(basis) < most:
                found = _beside(back(images[-1]), basis)
                if found.any():
                    basis.append(found)
        right, left, squares = _ritz(torch.stack(basis[: len(images)], 1), torch.stack(images, 1))
        residuals = torch.stack(
            [
                (back(y) - square[:, None, None] * v).norm(dim=(1, 2))
                for v, y, square in zip(right[:count], left[:count], squares[:count], strict=True)
            ]
        )
        least, own = RESIDUAL * squares[:count], before[: len(residuals)]
        # No nearer than before is as near as rounding lets it come.
        if bool(((residuals <= least) | (residuals > 0.9 * own)).all()):
            break
        if len(images) == len(basis):
            break
        before = residuals
        kept = min(count + KEPT, len(right))
        basis = [*right[:kept], *basis[len(images) :]]
        images = list(left[:kept])
    return _found(right, squares, residuals, forward, count)


def _beside(matrix: Tensor, basis: Sequence[Tensor]) -> Tensor:
    """Return what lies beside a basis, of norm 1; 0 in groups where it is rounding."""
    matrix = (matrix + matrix.mT) / 2
    size, rest = matrix.norm(dim=(1, 2)), matrix
    for _ in range(2):  # once loses orthogonality
        for one in basis:
            rest = rest - (one * rest).sum((1, 2), keepdim=True) * one
    length = rest.norm(dim=(1, 2))
    some = length > 1e-15 * size
    return rest * (some / length.where(some, 1.0))[:, None, None]


def _ritz(basis: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return vectors v in a basis, R v, and |R v|^2, the largest first.

    Args:
        basis: (groups, k, m, m) orthonormal.
        images: R of them.
    """
    # The images themselves rather than their products: squares would hide what is small.
    _, singular, turn = torch.linalg.svd(images.flatten(2).mT, full_matrices=False)
    right = torch.einsum("gij,gjab->igab", turn, basis)
    left = torch.einsum("gij,gjab->igab", turn, images)
    return right, left, singular.square().T


def _found(right: Tensor, squares: Tensor, residuals: Tensor, forward: Map, count: int) -> Singular:
    """Return the leading pairs; those that there are not, as R has fewer, are 0."""
    right = (right + right.mT) / 2
    missing = max(0, count + 1 - len(right))
    right = torch.cat([right, right.new_zeros(missing, *right.shape[1:])])[:count]
    length = right.norm(dim=(2, 3), keepdim=True)
    right = right / length.where(length > 0, 1.0)
    squares = torch.cat([squares, squares.new_zeros(missing, squares.shape[1])])[: count + 1]
    residuals = torch.cat([residuals, residuals.new_zeros(count - len(residuals), len(right[0]))])
    apart = squares[:-1] - squares[1:]
    apart[1:] = torch.minimum(apart[1:], apart[:-1].clone())
    own = squares[:-1].where(squares[:-1] > 0, 1.0)
    gaps = (apart / own).clamp_min(1e-15).reciprocal()
    left = torch.stack([forward(v) for v in right])
    return Singular(right, left, squares[:-1], gaps, (residuals / own).clamp_min(RESIDUAL))
