"""Inner products of rows in float64, of which a symmetric matrix takes one half."""

from __future__ import annotations

import torch
from torch import Tensor

from evalkit.layers.budget import Budget

FEWEST_ROWS = 32
MOST_BLOCKS = 8
"""Blocks of rows that are multiplied with those above them in a symmetric product: enough to leave
out most of its other half, of enough rows each for a matrix product to be fast."""


def add_products(total: Tensor, left: Tensor, right: Tensor, budget: Budget) -> None:
    """Add the inner products of two sets of formed rows in float64, some columns at a time.

    Args:
        total: (K, N, K', N') float64, to add to.
        left: (K N, size).
        right: (K' N', size); the same object for a symmetric matrix.
        budget: how much is formed at a time.
    """
    flat = total.view(len(left), len(right))
    step = max(1, budget.doubled // max(flat.shape))
    if left is right:
        half = torch.zeros_like(flat)
        for part in left.split(step, 1):
            _add_half(half, part.double())
        flat += _whole(half)
        return
    for a, b in zip(left.split(step, 1), right.split(step, 1), strict=True):
        flat.addmm_(a.double(), b.double().T)


def inner_products(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner products of rows in float64: (M, size), (M', size) -> (M, M').

    Of the same rows one half is computed.
    """
    one = left.double()
    if right is not left:
        return one @ right.double().T
    half = one.new_zeros(len(one), len(one))
    _add_half(half, one)
    return _whole(half)


def _add_half(half: Tensor, rows: Tensor) -> None:
    """Add the inner products of rows with themselves and those above them."""
    end = 0
    for part in rows.tensor_split(max(1, min(MOST_BLOCKS, len(rows) // FEWEST_ROWS))):
        start, end = end, end + len(part)
        half[start:end, :end].addmm_(part, rows[:end].T)


def _whole(half: Tensor) -> Tensor:
    """Return a symmetric matrix from its lower half."""
    return half.tril() + half.tril(-1).T
