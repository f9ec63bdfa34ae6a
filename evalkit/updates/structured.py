"""What the methods share that take the Fisher matrix layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from evalkit.curvature import Source, preconditioned
from evalkit.curvature.direction import Structure
from evalkit.linearization import Linearization
from evalkit.updates.types import Rounding, VectorUpdate

LOST = 1e-6
"""Part of the gradient from which on it is said that a pseudo-inverse loses it."""


def check(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings of a source of cotangents that do not go together.

    Args:
        name: of the method.
        settings: all of them.

    Raises:
        EvalkitError: they do not.
    """
    known = Source.__dataclass_fields__.keys() & settings.keys()
    Source(**{key: settings[key] for key in known}).check(name)


def structured(
    lin: Linearization,
    damping: float,
    source: Source,
    name: str,
    structure: Structure,
    *settings: str,
) -> VectorUpdate:
    """Return the direction of a structure as an update.

    Args:
        lin: the model and batch.
        damping: lambda.
        source: where the cotangents come from.
        name: of the structure.
        structure: makes the blocks of layers.
        settings: of the structure, which tell it from others of its name.
    """
    found = preconditioned(lin, damping, source, (name, *settings), structure)
    if damping == 0 and found.lost > LOST:
        warnings.warn(
            f"{name}: {found.lost:.1%} of the gradient lies outside of the range of the matrix "
            "and is lost without damping",
            stacklevel=2,
        )
    return VectorUpdate(found.parts, rounding=Rounding(found.moved, found.slope, found.deviation))
