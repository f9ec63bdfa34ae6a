"""One colour, marker and dash pattern for each method, in every figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
    Style("#a6cee3", "p", (8, 1.5)),
    Style("#7a9a01", "*", (1, 1.5)),
)
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
FLOOR = Style("#8c8c8c", "", (1, 1.2))
IMBALANCE = {
    "imbalance": ("parameters", Style("#1a1a1a", "o")),
    "logit_imbalance": ("logits", Style("#009e73", "s", (5, 1.5))),
}
"""Name and style of the curve of each kind of imbalance."""


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """Return a style per method: the fixed one where there is one, else the next spare one."""
    others = [method for method in dict.fromkeys(methods) if method not in _METHODS]
    return _METHODS | {name: _SPARE[place % len(_SPARE)] for place, name in enumerate(others)}


def run_styles(names: Sequence[str]) -> dict[str, Style]:
    """Return a style per run, in the order given."""
    return {name: _RUNS[place % len(_RUNS)] for place, name in enumerate(names)}
