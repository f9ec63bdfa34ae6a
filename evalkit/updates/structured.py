"""What the methods share that take the Fisher matrix layer by layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evalkit.curvature import Preconditioned, Source, preconditioned
from evalkit.curvature.direction import Structure
from evalkit.curvature.labels import unknown
from evalkit.errors import EvalkitError
from evalkit.linearization import Linearization
from evalkit.settings import Others
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


def check_floor(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse a floor that divides by zero or less, beside what :func:`check` refuses.

    Args:
        name: of the method.
        settings: all of them.

    Raises:
        EvalkitError: they do not.
    """
    floor = settings["floor"]
    if not 0 < floor < math.inf:
        raise EvalkitError(
            f"expected a floor above 0 in method '{name}', found {floor:g}; use 0.1, its "
            "default, or another number up to 1"
        )
    check(name, settings)


def structured(
    lin: Linearization,
    damping: float,
    source: Source,
    name: str,
    structure: Structure,
    *settings: str,
    others: Others = "block",
) -> VectorUpdate:
    """Return the direction of a structure as an update.

    Args:
        lin: the model and batch.
        damping: lambda.
        source: where the cotangents come from.
        name: of the structure.
        structure: makes the blocks of layers.
        settings: of the structure, which tell it from others of its name.
        others: what is made of parameters without factors.
    """
    found = preconditioned(lin, damping, source, (name, *settings), structure, others)
    update = as_update(name, found, damping)
    return replace(update, matrix=found.matrix, lengths=found.lengths)


def as_update(name: str, found: Preconditioned, damping: float) -> VectorUpdate:
    """Return a direction as an update, and say what of the gradient it loses.

    Args:
        name: of the method.
        found: the direction.
        damping: lambda.
    """
    if damping == 0 and found.lost > LOST:
        warnings.warn(
            f"{name}: {found.lost:.1%} of the gradient lies outside of the range of the matrix "
            "and is lost without damping",
            stacklevel=3,
        )
    rounding = Rounding(found.moved, found.slope, found.deviation)
    if unknown(found.matrix.pulled.lin, found.matrix.pulled.source):
        rounding = Rounding(math.inf, math.inf)
    return VectorUpdate(found.parts, rounding=rounding)
