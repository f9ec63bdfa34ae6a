"""The gradient itself."""

from evalkit.linearization import Linearization
from evalkit.updates.registry import method
from evalkit.updates.types import CotangentUpdate


@method("sgd")
def sgd(lin: Linearization, damping: float) -> CotangentUpdate:
    """Plain gradient: d = g = sum_n G_n. The damping plays no part."""
    return CotangentUpdate(lin.logit_gradients)
