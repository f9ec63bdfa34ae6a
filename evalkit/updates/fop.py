"""Fisher-orthogonal projection: KFAC's blocks on two halves of the batch."""

from __future__ import annotations

from functools import partial

from evalkit import curvature
from evalkit.curvature import Labels, Norm, Sharing, Source, Style
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import as_update, check
from evalkit.updates.types import VectorUpdate


@method("fop", check=check)
def fop(
    lin: Linearization,
    damping: float,
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    sharing: Sharing = "expand",
    style: Style = "tikhonov",
    step_sizes: bool = False,
    seed: int = 0,
    others: Others = "block",
) -> VectorUpdate:
    """FOP: KFAC's direction, and that of what two halves of the batch differ by beside it.

    d = 2 F^-1 (gavg + beta gperp) layer by layer, gperp the part of g1 - g2 that is orthogonal to
    gavg in F (Lu and Armour, 2025). With ``step_sizes=true`` each layer has a step size of its own.
    """
    source = Source(labels, labels_per_sample, norm, seed)
    structure = partial(curvature.kfac, sharing=sharing, style=style)
    found = curvature.fisher_orthogonal(
        lin, damping, source, ("kfac", sharing, style), structure, step_sizes, others
    )
    return as_update("fop", found, damping)
