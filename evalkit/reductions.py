"""Reductions of long vectors, and scales that lose no digit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 4096


def norm(vector: Tensor) -> float:
    """Return |v| with the sum accumulated in float64.

    Blocks are summed in the vector's dtype, so that a long float32 vector needs no float64 copy;
    a sum of 4096 squares loses at most the last digit or two, and those errors average out.

    Args:
        vector: (P,).
    """
    whole = vector.numel() // BLOCK * BLOCK
    blocks = torch.linalg.vector_norm(vector[:whole].view(-1, BLOCK), dim=1).double()
    total = float(torch.linalg.vector_norm(torch.cat([blocks, vector[whole:].double()])))
    most = 1e140 if vector.dtype == torch.float64 else 1e15
    if 1 / most < total < most or not vector.any():
        return total
    # Squares underflow or overflow here.
    wide = vector.double()
    scale = float(power_of_two(wide))
    return float(torch.linalg.vector_norm(wide / scale)) * scale


def is_finite(values: Tensor) -> bool:
    """Return whether every entry is finite; the sum decides, unless it overflows itself."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def inverse(values: Tensor) -> Tensor:
    """Return 1 / v, zero where v is zero or so small that 1 / v overflows.

    Args:
        values: v >= 0, any shape.
    """
    found = values.reciprocal()
    return found.where((values > 0) & found.isfinite(), 0.0)


def power_of_two(values: Tensor, dim: int | None = None) -> Tensor:
    """Return the power of two below the largest magnitude: dividing by it is exact and tames 1e12.

    Args:
        values: any shape.
        dim: take the largest magnitude along this axis; default: of all.
    """
    largest = torch.linalg.vector_norm(values, math.inf, dim)
    _, exponents = torch.frexp(largest)  # of zero: zero
    return torch.ldexp(torch.ones_like(largest), exponents - 1)  # that above may overflow
