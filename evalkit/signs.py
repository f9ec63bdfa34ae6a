"""Random signs, from which sums of squares and changes of the kind that rounding makes are told."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def random_signs(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Return 1 or -1 for each entry.

    Sketches of millions of entries draw theirs 32 at a time (:mod:`evalkit.layers.sketches`).

    Args:
        shape: of the result.
        generator: of the CPU, so that draws are the same on every device.
        like: has the dtype and the device of the result.
    """
    return torch.randint(0, 2, tuple(shape), generator=generator).to(like) * 2 - 1
