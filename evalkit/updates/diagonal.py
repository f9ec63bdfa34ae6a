"""The diagonal of each block."""

from __future__ import annotations

from evalkit import curvature
from evalkit.curvature import Labels, Norm, Source
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import check, structured
from evalkit.updates.types import VectorUpdate


@method("diagonal", check=check)
def diagonal(
    lin: Linearization,
    damping: float,
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    seed: int = 0,
    others: Others = "block",
) -> VectorUpdate:
    """Diagonal: g / (diag(F) + lambda), entry by entry, in layers whose weight is a matrix.

    All other parameters have their own block, as in every method by layers.
    """
    source = Source(labels, labels_per_sample, norm, seed)
    return structured(lin, damping, source, "diagonal", curvature.diagonal, others=others)
