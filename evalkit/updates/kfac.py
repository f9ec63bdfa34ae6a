"""KFAC: Kronecker-factored blocks."""

from __future__ import annotations

from functools import partial

from evalkit import curvature
from evalkit.curvature import Labels, Norm, Sharing, Source, Style
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import check, structured
from evalkit.updates.types import VectorUpdate


@method("kfac", check=check)
def kfac(
    lin: Linearization,
    damping: float,
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    sharing: Sharing = "expand",
    style: Style = "tikhonov",
    seed: int = 0,
    others: Others = "block",
) -> VectorUpdate:
    """KFAC: (B (x) A + lambda I)^-1 g layer by layer, A of inputs and B of output gradients.

    With ``labels=empirical`` and ``labels=improved`` it is eKFAC and ieKFAC (paper, eq. 41-43). The
    damping is added to the product, or with ``style=pi`` and ``style=plain`` to both factors.
    """
    source = Source(labels, labels_per_sample, norm, seed)
    structure = partial(curvature.kfac, sharing=sharing, style=style)
    return structured(lin, damping, source, "kfac", structure, sharing, style, others=others)
