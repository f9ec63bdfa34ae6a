"""Deflation: the nearest Kronecker product, and the nearest to what it leaves."""

from __future__ import annotations

from functools import partial

from evalkit import curvature
from evalkit.curvature import FLOOR, Labels, Norm, Source
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import check_floor, structured
from evalkit.updates.types import VectorUpdate


@method("deflation", check=check_floor, damped=True)
def deflation(
    lin: Linearization,
    damping: float,
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    floor: float = FLOOR,
    seed: int = 0,
    others: Others = "block",
) -> VectorUpdate:
    """Deflation: two Kronecker products layer by layer, the nearest and that to what it leaves.

    Both damped as KPSVD with ``style=pi``; along joint eigenvectors the second leaves at least
    ``floor`` of the first (Koroko et al., 2022).
    """
    source = Source(labels, labels_per_sample, norm, seed)
    structure = partial(curvature.deflation, floor=floor)
    return structured(lin, damping, source, "deflation", structure, str(floor), others=others)
