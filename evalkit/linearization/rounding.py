"""Rounding of a forward, seen as rounding of its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from evalkit.linearization.micro_batches import MicroBatches


def rounded_weights(batches: MicroBatches) -> Tensor:
    """Return by how much weights change that are rounded up or down at random, in units of u: (P,).

    The rounding of a layer's products and sums is that of its weights, each changed by a few u of
    itself (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.5); a weight
    that is zero takes the mean size of its parameter's entries.

    Args:
        batches: the forward passes.
    """
    generator = torch.Generator().manual_seed(0)
    parts = []
    for value in batches.parameters.values():
        sizes = value.detach().abs()
        sizes = sizes.where(sizes > 0, sizes.mean())
        signs = torch.randint(0, 2, value.shape, generator=generator).to(sizes) * 2 - 1
        parts.append((sizes * signs).flatten())
    return torch.cat(parts)
