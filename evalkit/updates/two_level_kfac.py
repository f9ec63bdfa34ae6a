"""KFAC with a second level: one number for each layer, by the exact Fisher matrix."""

from __future__ import annotations

from functools import partial

from evalkit import curvature
from evalkit.curvature import Coarse, Labels, Norm, Sharing, Source
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import as_update, check
from evalkit.updates.types import VectorUpdate


@method("two-level-kfac", check=check)
def two_level_kfac(
    lin: Linearization,
    damping: float,
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    sharing: Sharing = "expand",
    coarse: Coarse = "ones",
    seed: int = 0,
    others: Others = "block",
) -> VectorUpdate:
    """Two-level KFAC: d0 + Z (Z^T (F + lambda I) Z)^+ Z^T (g - (F + lambda I) d0), d0 KFAC's.

    F is the exact Fisher matrix, Z has a column for each block: ones there, or with
    ``coarse=residual`` and ``coarse=direction`` the residual g - (F + lambda I) d0 and d0 itself.
    """
    source = Source(labels, labels_per_sample, norm, seed)
    structure = partial(curvature.kfac, sharing=sharing)
    matrix = curvature.block_matrix(lin, source, ("kfac", sharing, "tikhonov"), structure, others)
    fine = curvature.solved(matrix, dict(matrix.solutions(damping)), damping)
    found = curvature.two_level(matrix, fine, damping, coarse)
    return as_update("two-level-kfac", found, damping)
