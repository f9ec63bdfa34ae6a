"""How methods are written for people: names with their settings, and parts of them."""

from __future__ import annotations

_NAMES = {
    "sgd": "SGD",
    "ef": "EF",
    "ief": "iEF",
    "ief-tikhonov": "iEF (Tikhonov)",
    "sf": "SF",
    "ngd": "NGD",
}


def display_name(method: str) -> str:
    """Return how a method is written in figures and tables, its settings in brackets."""
    base, *settings = method.split(":")
    name, listed = _NAMES.get(base, base), ", ".join(settings)
    if not settings:
        return name
    return f"{name[:-1]}, {listed})" if name.endswith(")") else f"{name} ({listed})"


def base_name(method: str) -> str:
    """Return the name of a method without its settings."""
    return method.partition(":")[0]
