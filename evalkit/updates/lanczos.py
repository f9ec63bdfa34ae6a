"""Lanczos: the nearest sum of two Kronecker products."""

from __future__ import annotations

from functools import partial

from evalkit import curvature
from evalkit.curvature import FLOOR, Labels, Norm, Source
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import check_floor, structured
from evalkit.updates.types import VectorUpdate


@method("lanczos", check=check_floor, damped=True)
def lanczos(
    lin: Linearization,
    damping: float,
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    floor: float = FLOOR,
    seed: int = 0,
    others: Others = "block",
) -> VectorUpdate:
    """Lanczos: the two Kronecker products nearest to each block together, found in one search.

    The matrix, the damping and the ``floor`` are those of ``deflation`` (Koroko et al., 2022).
    """
    source = Source(labels, labels_per_sample, norm, seed)
    structure = partial(curvature.lanczos, floor=floor)
    return structured(lin, damping, source, "lanczos", structure, str(floor), others=others)
