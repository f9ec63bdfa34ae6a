"""The gradient itself."""

from evalkit.linearization import Linearization
from evalkit.updates.registry import Update, method


@method("sgd")
def sgd(lin: Linearization, damping: float) -> Update:
    """Plain gradient: d = g = sum_n G_n. The damping plays no part."""
    return Update(cotangents=lin.logit_gradients)
