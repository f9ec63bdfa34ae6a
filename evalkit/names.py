"""How methods and tasks are written: names with their settings, and parts of them."""

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
