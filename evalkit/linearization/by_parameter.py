"""Vectors of as many numbers as a model has parameters, kept by parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.layers.low_rank import LowRank
from evalkit.reductions import is_finite, norm


@dataclass(frozen=True, eq=False)
class ByParameter:
    """A vector, (P,), by parameter: a change of a weight may be a product of two thin matrices.

    Products with the Jacobian take such a change as it is, and nothing of the size of the weight is
    ever formed.

    Attributes:
        parts: in the shapes of the parameters and in their order, by name.
    """

    parts: Mapping[str, Tensor | LowRank]

    @property
    def norm(self) -> float:
        """The norm of the vector."""
        return math.hypot(
            *(
                one.norm if isinstance(one, LowRank) else norm(one.flatten())
                for one in self.parts.values()
            )
        )

    @property
    def finite(self) -> bool:
        """Whether no number is infinite or NaN."""
        return all(
            one.finite if isinstance(one, LowRank) else is_finite(one)
            for one in self.parts.values()
        )

    def to(self, like: torch.dtype | Tensor) -> ByParameter:
        """Return it in a dtype, or on the device and in the dtype of a tensor."""
        return ByParameter({name: one.to(like) for name, one in self.parts.items()})

    def vector(self) -> Tensor:
        """Return it formed: (P,)."""
        formed = (
            one.formed() if isinstance(one, LowRank) else one for one in self.parts.values()
        )
        return torch.cat([one.flatten() for one in formed])
