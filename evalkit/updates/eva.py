"""Eva: blocks of mean vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalkit import curvature
from evalkit.curvature import Labels, Norm, Source
from evalkit.errors import EvalkitError
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import check, structured
from evalkit.updates.types import VectorUpdate


def _check(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse labels whose means say nothing, beside what all sources refuse."""
    if settings["labels"] == "exact":
        raise EvalkitError(
            f"expected labels with a mean for method '{name}', found labels=exact, whose signs are "
            "arbitrary; use another, such as labels=sampled"
        )
    check(name, settings)


@method("eva", check=_check, damped=True)
def eva(
    lin: Linearization,
    damping: float,
    labels: Labels = "empirical",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    seed: int = 0,
    others: Others = "block",
) -> VectorUpdate:
    """Eva: (N dd^T (x) aa^T + lambda I)^-1 g layer by layer, a and d means of KFAC's vectors."""
    source = Source(labels, labels_per_sample, norm, seed)
    return structured(lin, damping, source, "eva", curvature.eva, others=others)
