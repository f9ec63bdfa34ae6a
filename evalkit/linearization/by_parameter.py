"""Vectors of as many numbers as a model has parameters, kept by parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evalkit.layers.low_rank import LowRank, formed
from evalkit.reductions import is_finite, norm

Parts = Mapping[str, Tensor | LowRank]


@dataclass(frozen=True, eq=False)
class ByParameter:
    """A vector, (P,), by parameter: a change of a weight may be a product of two thin matrices.

    Products with the Jacobian take such a change as it is, and nothing of the size of the weight is
    ever formed.

    Attributes:
        form: returns its parts, in the shapes of the parameters and in their order, by name.
        dtype: that the parts are brought to.
        length: the norm of the vector, where it is known.
    """

    form: Callable[[], Parts]
    dtype: torch.dtype
    length: float | None = None

    @property
    def parts(self) -> Parts:
        """The parts, formed each time."""
        return {name: one.to(self.dtype) for name, one in self.form().items()}

    @property
    def norm(self) -> float:
        """The norm of the vector."""
        if self.length is not None:
            return self.length
        return math.hypot(
            *(
                one.norm if isinstance(one, LowRank) else norm(one.flatten())
                for one in self.parts.values()
            )
        )

    @property
    def finite(self) -> bool:
        """Whether no number is infinite or NaN."""
        if self.length is not None and self.length < torch.finfo(self.dtype).max:
            return True
        return all(
            one.finite if isinstance(one, LowRank) else is_finite(one)
            for one in self.parts.values()
        )

    def to(self, dtype: torch.dtype) -> ByParameter:
        """Return it in a dtype."""
        return replace(self, dtype=dtype)

    def vector(self) -> Tensor:
        """Return it formed: (P,)."""
        return torch.cat([formed(one).flatten() for one in self.parts.values()])
