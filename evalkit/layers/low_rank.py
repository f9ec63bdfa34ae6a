"""Matrices of low rank as products of two thin ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.reductions import is_finite


@dataclass(frozen=True, eq=False)
class LowRank:
    """A matrix L R^T; nothing cancels in it where the right factor has orthonormal columns.

    Attributes:
        left: L, (..., out, rank).
        right: R, (..., in, rank).
    """

    left: Tensor
    right: Tensor

    @property
    def norm(self) -> float:
        """The Frobenius norm."""
        left, right = self.left.double(), self.right.double()
        inner = (left.mT @ left) * (right.mT @ right)
        # What a sum over many entries rounds to may be below zero where the matrix is.
        return float(inner.sum().clamp_min(0.0).sqrt())

    @property
    def finite(self) -> bool:
        """Whether no entry of a factor is infinite or NaN."""
        return is_finite(self.left) and is_finite(self.right)

    def formed(self) -> Tensor:
        """Return the matrix, (..., out, in)."""
        return self.left @ self.right.mT

    def to(self, dtype: torch.dtype) -> LowRank:
        """Return it in a dtype."""
        return LowRank(self.left.to(dtype), self.right.to(dtype))


def formed(value: Tensor | LowRank) -> Tensor:
    """Return a change of a parameter as a tensor."""
    return value.formed() if isinstance(value, LowRank) else value
