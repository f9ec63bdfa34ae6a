"""Reductions of long vectors, accurate and in one pass."""

from __future__ import annotations

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
    return float(torch.linalg.vector_norm(torch.cat([blocks, vector[whole:].double()])))


def is_finite(vector: Tensor) -> bool:
    """Return whether every entry is finite; the sum decides, unless it overflows itself."""
    return bool(vector.sum().isfinite()) or bool(vector.isfinite().all())
