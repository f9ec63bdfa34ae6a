"""What a step of EF and its kin lowers each sample's loss by: the right sides t of their systems.

Each direction is d = G^T (G G^T + lambda I)^-1 t. Undamped, G_n . d = t_n where the rows of G are
independent, so that a step -eta d changes the loss of sample n by -eta t_n to first order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.linearization import Linearization
from evalkit.rounding import check_range


@dataclass(frozen=True)
class Target:
    """A right side t of (G G^T + lambda I) a = t.

    Attributes:
        of: returns t, (N,) float64, of the summed loss.
        degree: k; losses divided by N, as those of the mean loss are, have t / N^k.
    """

    of: Callable[[Linearization], Tensor]
    degree: int


TARGETS: Mapping[str, Target] = {
    "ef": Target(lambda lin: torch.ones_like(lin.losses), 0),
    "ief": Target(lambda lin: lin.logit_gradient_norms.square(), 2),
    "fgn": Target(lambda lin: lin.floor_terms, 1),
    "polyak": Target(lambda lin: lin.losses, 1),
}
"""By the name of the method."""


def right_side(lin: Linearization, name: str) -> Tensor:
    """Return t of a method: (N,) float64.

    Args:
        lin: the model and batch.
        name: a key of :data:`TARGETS`.

    Raises:
        EvalkitError: one is beyond the range of float64.
    """
    t = TARGETS[name].of(lin)
    check_range(lin, t, f"the right side of method '{name}'")
    return t
