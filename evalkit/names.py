"""How methods and tasks are written: names with their settings, and parts of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

MANY = 8
"""The most methods that one panel shows; more are grouped by family."""

Family = Literal[
    "gradient", "sample weights", "sampled labels", "KFAC", "other layerwise", "your own", "exact"
]
FAMILIES: tuple[Family, ...] = get_args(Family)
"""Kinds of methods, in the order of tables and figures that group them."""
YOURS: Family = "your own"
"""What is not in the table below."""


@dataclass(frozen=True)
class Known:
    """A method that evalkit has.

    Attributes:
        shown: how its name reads in figures and tables.
        family: what it is grouped with.
    """

    shown: str
    family: Family


KNOWN: dict[str, Known] = {
    "sgd": Known("SGD", "gradient"),
    "swan": Known("SWAN", "gradient"),
    "ef": Known("EF", "sample weights"),
    "ief": Known("iEF", "sample weights"),
    "ief-tikhonov": Known("iEF (Tikhonov)", "sample weights"),
    "fgn": Known("FGN", "sample weights"),
    "fgn-tikhonov": Known("FGN (Tikhonov)", "sample weights"),
    "polyak": Known("Polyak", "sample weights"),
    "best-weights": Known("best weights", "sample weights"),
    "sf": Known("SF", "sampled labels"),
    "kfac": Known("KFAC", "KFAC"),
    "kfac-corrected": Known("KFAC-corrected", "KFAC"),
    "ekfac": Known("EKFAC", "KFAC"),
    "two-level-kfac": Known("two-level KFAC", "KFAC"),
    "fop": Known("FOP", "KFAC"),
    "block": Known("block", "other layerwise"),
    "diagonal": Known("diagonal", "other layerwise"),
    "kpsvd": Known("KPSVD", "other layerwise"),
    "deflation": Known("Deflation", "other layerwise"),
    "lanczos": Known("Lanczos", "other layerwise"),
    "shampoo": Known("Shampoo", "other layerwise"),
    "eva": Known("Eva", "other layerwise"),
    "fopng": Known("FOPNG", "other layerwise"),
    "optimizer": Known("optimiser's step", "gradient"),
    "ngd": Known("NGD", "exact"),
}
"""Tables are read where no method need be registered, so that this stands apart from the code."""
OPTIMIZERS: dict[str, Known] = {
    "adam": Known("Adam", "gradient"),
    "adamw": Known("AdamW", "gradient"),
    "adafactor": Known("Adafactor", "gradient"),
    "muon": Known("Muon", "gradient"),
}
"""Optimizers of trainings that are no methods: each has a state of its own."""

_LABELS = ("sampled", "exact", "empirical", "improved", "floor")
"""Sources of cotangents, which read without the name of their setting."""
_KFAC = {"empirical": "eKFAC", "improved": "ieKFAC"}
"""What KFAC is called with some labels (paper, eq. 41-43)."""
_NAMED = {**KNOWN, **OPTIMIZERS}
_TAKEN = {known.shown for known in _NAMED.values()} | set(_KFAC.values())


def split_method(method: str) -> tuple[str, dict[str, str | None]]:
    """Split ``"sf:labels_per_sample=4"`` into a name and its settings as they are written.

    :func:`evalkit.updates.parser.parse` checks them; tables are read without that, since the
    methods of a run need not be known where it is reported.

    Returns:
        The name, and the text of each setting, of which the last counts; None for one without "=".
    """
    name, *parts = method.split(":")
    pairs = (part.partition("=") for part in parts)
    return name, {key: value if equals else None for key, equals, value in pairs}


def display_name(method: str) -> str:
    """Return how a method, or an optimizer, is written in figures and tables.

    Its settings follow in brackets as they are given, ``labels`` by its value alone:
    ``EKFAC (exact, style=pi)``; KFAC with empirical and improved labels is eKFAC and ieKFAC. What
    is not given is not named, so that two methods never read alike. A method of the user with a
    name that reads as one of evalkit's is put in quotes.
    """
    base, settings = split_method(method)
    name = _NAMED[base].shown if base in _NAMED else f"'{base}'" if base in _TAKEN else base
    if base == "kfac" and settings.get("labels") in _KFAC:
        name = _KFAC[str(settings.pop("labels"))]
    listed = ", ".join(
        str(value) if key == "labels" and value in _LABELS else _setting(key, value)
        for key, value in settings.items()
    )
    if not settings:
        return name
    return f"{name[:-1]}, {listed})" if name.endswith(")") else f"{name} ({listed})"


def _setting(key: str, value: str | None) -> str:
    return key if value is None else f"{key}={value}"


def family(method: str) -> Family:
    """Return what a method is grouped with."""
    base = base_name(method)
    return _NAMED[base].family if base in _NAMED else YOURS


def by_family(methods: Iterable[str]) -> dict[Family, tuple[str, ...]]:
    """Return methods by family, in the order of :data:`FAMILIES`, each family as given."""
    groups: dict[Family, list[str]] = {name: [] for name in FAMILIES}
    for method in dict.fromkeys(methods):
        groups[family(method)].append(method)
    return {name: tuple(group) for name, group in groups.items() if group}


def arranged(methods: Iterable[str]) -> tuple[str, ...]:
    """Return methods as given, more than :data:`MANY` family by family."""
    given = tuple(dict.fromkeys(methods))
    if len(given) <= MANY:
        return given
    return tuple(method for group in by_family(given).values() for method in group)


def base_name(method: str) -> str:
    """Return the name of a method without its settings."""
    return split_method(method)[0]


def task_name(spec: str) -> str:
    """Return what a task without a name of its own is called: a file without its folders.

    The same file by another path is the same task; which text it holds is told by its hash.

    Args:
        spec: a registered name, ``file.py:attribute`` or ``package.module:attribute``.
    """
    location, colon, attribute = spec.rpartition(":")
    if not colon or not (location.endswith(".py") or "/" in location or "\\" in location):
        return spec
    name = location.replace("\\", "/").rpartition("/")[2]
    return f"{name}:{attribute}"
