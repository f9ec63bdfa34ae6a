"""How methods and tasks are written: names with their settings, and parts of them."""

from __future__ import annotations

_NAMES = {
    "sgd": "SGD",
    "ef": "EF",
    "ief": "iEF",
    "ief-tikhonov": "iEF (Tikhonov)",
    "fgn": "FGN",
    "fgn-tikhonov": "FGN (Tikhonov)",
    "polyak": "Polyak",
    "best-weights": "best weights",
    "sf": "SF",
    "kfac": "KFAC",
    "ekfac": "EKFAC",
    "kpsvd": "KPSVD",
    "shampoo": "Shampoo",
    "eva": "Eva",
    "ngd": "NGD",
}

_KFAC: dict[str | None, str] = {"empirical": "eKFAC", "improved": "ieKFAC"}
"""What KFAC is called with some labels (paper, eq. 41-43)."""


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
    """Return how a method is written in figures and tables, its other settings in brackets."""
    base, settings = split_method(method)
    name = _NAMES.get(base, base)
    if base == "kfac" and settings.get("labels") in _KFAC:
        name = _KFAC[settings.pop("labels")]
    listed = ", ".join(k if value is None else f"{k}={value}" for k, value in settings.items())
    if not settings:
        return name
    return f"{name[:-1]}, {listed})" if name.endswith(")") else f"{name} ({listed})"


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
