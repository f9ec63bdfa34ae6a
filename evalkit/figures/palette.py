"""One colour, marker and dash pattern for each method, in every figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evalkit.names import arranged, family, split_method


@dataclass(frozen=True)
class Style:
    """How a line is drawn.

    Attributes:
        color: hexadecimal.
        marker: matplotlib's letter.
        dashes: points on and off; empty for a solid line.
    """

    color: str
    marker: str
    dashes: tuple[float, ...] = ()


# After Okabe and Ito, which the colour-blind tell apart; neighbours differ in lightness. What the
# page makes of them on dark paper differs as well.
_METHODS = {
    "sgd": Style("#6e6e6e", ".", (4, 1.5)),
    "ef": Style("#e8432a", "v", (6, 1.5, 1.5, 1.5)),
    "ief": Style("#0072b2", "o"),
    "ief-tikhonov": Style("#cc79a7", "P", (3, 1)),
    "sf": Style("#e69f00", "D", (5, 1.5)),
    "ngd": Style("#1a1a1a", "s", (1.5, 1)),
}
_SPARE = (
    Style("#009e73", "^", (7, 2)),
    Style("#56b4e9", "X", (2, 1)),
    Style("#7b3294", "<", (5, 1, 1, 1, 1, 1)),
    Style("#8c6d1f", ">", (4, 2)),
    Style("#3854e0", "p", (8, 1.5)),
    Style("#7a9a01", "*", (1, 1.5)),
)
_MORE_COLORS = (
    "#30bf48",
    "#264c13",
    "#e065e0",
    "#34735e",
    "#30bfbf",
    "#735334",
    "#9f92e0",
    "#bfa730",
    "#539945",
    "#e0ac92",
    "#a9bf7c",
    "#a6cee3",
)
"""Of methods beyond the spare styles."""
_MARKERS = ("^", "X", "<", ">", "p", "*", "D", "v", "s", "P", "o")
"""Of methods without a style of their own: one for each name, whatever its settings."""
_LABELS: dict[str | None, tuple[float, ...]] = {
    "empirical": _METHODS["ef"].dashes,
    "sampled": _METHODS["sf"].dashes,
    "exact": _METHODS["ngd"].dashes,
    "improved": _METHODS["ief-tikhonov"].dashes,
    "floor": (1, 1.5),
}
"""Dashes of a layerwise method by its labels, those of the method that has the same on the whole
matrix where it has any; solid where a method is left to its own."""
_LAYERWISE = ("KFAC", "other layerwise")
_RUNS = (
    Style("#0072b2", "o"),
    Style("#e8432a", "s", (6, 1.5)),
    Style("#009e73", "^", (3, 1)),
    Style("#cc79a7", "D", (6, 1.5, 1.5, 1.5)),
    Style("#e69f00", "v", (1.5, 1)),
    Style("#56b4e9", "X", (7, 2)),
    Style("#1a1a1a", "P", (2, 1)),
    Style("#8c6d1f", "<", (4, 2)),
)
QUIET = "#9a9a9a"
"""The colour of a method that a panel repeats beside those that it is about."""
FLOOR = Style("#8c8c8c", "", (1, 1.2))
IMBALANCE = {
    "imbalance": ("parameters", Style("#1a1a1a", "o")),
    "logit_imbalance": ("logits", Style("#009e73", "s", (5, 1.5))),
}
"""Name and style of the curve of each kind of imbalance."""


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """Return a style per method: the fixed one where there is one, else the next spare one.

    Layerwise methods have a marker for each structure and dashes for their labels. No two methods
    share marker and dashes, so that they are told apart without colour.
    """
    others = [method for method in arranged(methods) if method not in _METHODS]
    colors = [style.color for style in _SPARE] + list(_MORE_COLORS)
    markers: dict[str, str] = {}
    styles = dict(_METHODS)
    for place, method in enumerate(others):
        base, settings = split_method(method)
        marker = markers.setdefault(base, _MARKERS[len(markers) % len(_MARKERS)])
        wanted = _SPARE[place % len(_SPARE)].dashes
        if family(method) in _LAYERWISE:
            wanted = _LABELS.get(settings.get("labels"), ())
        taken = {style.dashes for style in styles.values() if style.marker == marker}
        choices = (wanted, *_LABELS.values(), *(style.dashes for style in _SPARE))
        dashes = next((dashes for dashes in choices if dashes not in taken), wanted)
        styles[method] = Style(colors[place % len(colors)], marker, dashes)
    return styles


def run_styles(names: Sequence[str]) -> dict[str, Style]:
    """Return a style per run, in the order given.

    No two of 64 share marker and dashes, no two of 20 a colour.
    """
    count = len(_RUNS)
    colors = [*(style.color for style in _RUNS), *_MORE_COLORS]
    return {
        name: Style(
            colors[place % len(colors)],
            _RUNS[place % count].marker,
            _RUNS[(place + place // count) % count].dashes,
        )
        for place, name in enumerate(names)
    }
