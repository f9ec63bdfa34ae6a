"""The gradient itself."""

from torch import Tensor

from evalkit.linearization import Linearization
from evalkit.updates.registry import method


@method("sgd")
def sgd(lin: Linearization, damping: float) -> Tensor:
    """Plain gradient: d = g = sum_n G_n. The damping plays no part."""
    return lin.gradient
