"""FOPNG: a diagonal natural gradient that is orthogonal to what past tasks have learned."""

from __future__ import annotations

from dataclasses import replace

from evalkit import curvature
from evalkit.curvature import Form, Labels, Norm, PastTask, Source
from evalkit.linearization import Linearization
from evalkit.updates.registry import method, no_past
from evalkit.updates.structured import as_update, check
from evalkit.updates.types import SolverReport, VectorUpdate


@method("fopng", check=check)
def fopng(
    lin: Linearization,
    damping: float,
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    form: Form = "projection",
    seed: int = 0,
    past: PastTask | None = None,
) -> VectorUpdate:
    """FOPNG: g / (diag(F) + lambda), projected off F_old G of past tasks (Garg et al., 2026).

    lambda is added to diag(F) of the batch and to A = G^T F_old (diag(F) + lambda)^-1 F_old G, so
    that without a past it is the diagonal natural gradient. With ``form=published`` the last
    inverse is left out, as in the public code. The report's residual is what is left of
    |G^T F_old v| beside that of the direction that knows no past.
    """
    if past is None:
        raise no_past("fopng")
    source = Source(labels, labels_per_sample, norm, seed)
    found = curvature.projected(lin, past, damping, source, form)
    report = SolverReport("projection", 1, found.residual, True, 0.0, True)
    return replace(as_update("fopng", found.found, damping), report=report)
