"""Shampoo: second moments of the rows and columns of per-sample gradients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from evalkit import curvature
from evalkit.curvature import Labels, Norm, Source
from evalkit.errors import EvalkitError
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.updates.registry import method
from evalkit.updates.structured import check, structured
from evalkit.updates.types import VectorUpdate

EXPONENTS = (1.0, 0.5, 0.25)


def _check(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse exponents that are not Shampoo's, and a style for other exponents than 1."""
    exponent, style = settings["exponent"], settings["style"]
    if exponent not in EXPONENTS:
        raise EvalkitError(
            f"expected an exponent of method '{name}' that is 1, 0.5 or 0.25, found {exponent:g}; "
            "choose one"
        )
    if exponent != 1 and style != "tikhonov":
        raise EvalkitError(
            f"expected style={style} with exponent=1 alone in method '{name}', found "
            f"exponent={exponent:g}; leave the style out"
        )
    check(name, settings)


@method("shampoo", check=_check)
def shampoo(
    lin: Linearization,
    damping: float,
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    exponent: float = 1.0,
    style: Literal["tikhonov", "pi"] = "tikhonov",
    seed: int = 0,
    others: Others = "block",
) -> VectorUpdate:
    """Shampoo: (L (x) R / tr L + lambda I)^-1 g layer by layer, L and R sums of P P^T and P^T P.

    With ``exponent=0.5`` and ``exponent=0.25`` the matrix is L^e (x) R^e.
    """
    source = Source(labels, labels_per_sample, norm, seed)
    structure = partial(curvature.shampoo, exponent=exponent, style=style)
    return structured(
        lin, damping, source, "shampoo", structure, str(exponent), style, others=others
    )
