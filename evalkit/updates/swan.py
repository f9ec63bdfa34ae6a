"""SWAN: a baseline without a Fisher matrix."""

from __future__ import annotations

from functools import partial

from evalkit import curvature
from evalkit.curvature import Source
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import as_update
from evalkit.updates.types import VectorUpdate


@method("swan")
def swan(
    lin: Linearization, damping: float, center: bool = False, others: Others = "block"
) -> VectorUpdate:
    """SWAN: (G G^T)^(-1/2) G layer by layer, G the gradient with rows of length one.

    It knows no Fisher matrix and ignores the damping. With ``center=true`` the mean of each row is
    taken off it first. Parameters without factors are matrices of one row.
    """
    structure = partial(curvature.whitening, center=center)
    source, key = Source("empirical"), ("swan", center)
    found = curvature.preconditioned(lin, damping, source, key, structure, others)
    return as_update("swan", found, damping)
