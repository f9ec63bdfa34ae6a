"""KFAC-corrected: KFAC's Kronecker product, and the nearest to what it leaves."""

from __future__ import annotations

from functools import partial

from evalkit import curvature
from evalkit.curvature import FLOOR, Labels, Norm, Sharing, Source
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import check_floor, structured
from evalkit.updates.types import VectorUpdate


@method("kfac-corrected", check=check_floor, damped=True)
def kfac_corrected(
    lin: Linearization,
    damping: float,
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    sharing: Sharing = "expand",
    floor: float = FLOOR,
    seed: int = 0,
    others: Others = "block",
) -> VectorUpdate:
    """KFAC-corrected: KFAC's Kronecker product and the nearest to what it leaves, layer by layer.

    Damped as KFAC with ``style=pi``; along joint eigenvectors the second leaves at least ``floor``
    of the first (Koroko et al., 2022).
    """
    source = Source(labels, labels_per_sample, norm, seed)
    structure = partial(curvature.kfac_corrected, sharing=sharing, floor=floor)
    return structured(
        lin, damping, source, "kfac-corrected", structure, sharing, str(floor), others=others
    )
