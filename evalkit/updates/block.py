"""Blocks as they are."""

from __future__ import annotations

from evalkit import curvature
from evalkit.curvature import Labels, Norm, Source
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import check, structured
from evalkit.updates.types import VectorUpdate


@method("block", check=check)
def block(
    lin: Linearization,
    damping: float,
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    seed: int = 0,
    others: Others = "block",
) -> VectorUpdate:
    """Layerwise Fisher: (F_l + lambda I)^-1 g layer by layer, each block as it is.

    With ``labels=empirical`` it is TENGraD, with ``labels=exact`` the layerwise natural gradient.
    """
    source = Source(labels, labels_per_sample, norm, seed)
    return structured(lin, damping, source, "block", curvature.block, others=others)
