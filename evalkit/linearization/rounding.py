"""Rounding of a forward, seen as rounding of its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from evalkit.linearization.micro_batches import MicroBatches


def rounded_weights(batches: MicroBatches) -> Tensor:
    """Return by how much weights change that are rounded up or down, in units of u: (P,).

    The rounding of a layer's products and sums is that of its weights, each changed by a few u of
    itself (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.5). Up or down
    is a random sign for each index of each axis of a parameter, multiplied: millions of signs of
    their own would take longer than a product.

    Args:
        batches: the forward passes.
    """
    generator = torch.Generator().manual_seed(0)
    parts = []
    for value in batches.parameters.values():
        changed = value.detach()
        for axis, size in enumerate(value.shape):
            signs = torch.randint(0, 2, (size,), generator=generator).to(changed) * 2 - 1
            changed = changed * signs.view(-1, *[1] * (value.dim() - axis - 1))
        parts.append(changed.flatten())
    return torch.cat(parts)
