"""KPSVD: the nearest Kronecker products."""

from __future__ import annotations

from functools import partial
from typing import Literal

from evalkit import curvature
from evalkit.curvature import Labels, Norm, Source
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import check, structured
from evalkit.updates.types import VectorUpdate


@method("kpsvd", check=check)
def kpsvd(
    lin: Linearization,
    damping: float,
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    style: Literal["tikhonov", "pi"] = "tikhonov",
    seed: int = 0,
    others: Others = "block",
) -> VectorUpdate:
    """KPSVD: (B (x) A + lambda I)^-1 g layer by layer, the product nearest to each block.

    Nearest in the Frobenius norm (Koroko et al., 2022), which need not make the best step.
    """
    source = Source(labels, labels_per_sample, norm, seed)
    structure = partial(curvature.kpsvd, style=style)
    return structured(lin, damping, source, "kpsvd", structure, style, others=others)
