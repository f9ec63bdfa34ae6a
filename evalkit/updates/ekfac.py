"""EKFAC: KFAC's eigenvectors with second moments of their own."""

from __future__ import annotations

from evalkit import curvature
from evalkit.curvature import Labels, Norm, Source
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import check, structured
from evalkit.updates.types import VectorUpdate


@method("ekfac", check=check)
def ekfac(
    lin: Linearization,
    damping: float,
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    seed: int = 0,
    others: Others = "block",
) -> VectorUpdate:
    """EKFAC: (Q diag(s) Q^T + lambda I)^-1 g layer by layer, Q the eigenvectors of KFAC.

    s holds the second moments of per-sample gradients along them (George et al., 2018).
    """
    source = Source(labels, labels_per_sample, norm, seed)
    return structured(lin, damping, source, "ekfac", curvature.ekfac, others=others)
