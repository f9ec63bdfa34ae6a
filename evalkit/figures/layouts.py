"""Sizes, fonts and file formats of figures: on a screen, and in print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib

from evalkit.registry import Registry


@dataclass(frozen=True)
class Layout:
    """How large figures are.

    Attributes:
        name: how it is chosen.
        one_column: width of figures with one panel beside another, in inches.
        two_columns: width of figures with several.
        font: size of text in points; lines and markers go with it.
        formats: the formats of the files.
        folder: below the run's figures, empty for that folder itself.
    """

    name: str
    one_column: float
    two_columns: float
    font: float
    formats: tuple[str, ...]
    folder: str = ""

    def settings(self) -> Any:
        """Return matplotlib's settings, all of them: no ``matplotlibrc`` of a folder counts."""
        return {
            **_plain(),
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.labelsize": 1.05 * self.font,
            "axes.linewidth": 0.08 * self.font,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 1.05 * self.font,
            # Where panels lie before the layout is worked out: near where they end up.
            "figure.subplot.bottom": 0.06,
            "figure.subplot.hspace": 0.06,
            "figure.subplot.top": 0.99,
            "font.family": "DejaVu Sans",
            "font.size": self.font,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.067 * self.font,
            "lines.linewidth": self.font / 6,
            "lines.markersize": self.font / 2,
            "mathtext.fontset": "dejavusans",
            "pdf.fonttype": 42,  # text stays text, as publishers ask
            "savefig.dpi": 200,
            "svg.fonttype": "path",
            "svg.hashsalt": "evalkit",
            "xtick.labelsize": self.font,
            "ytick.labelsize": self.font,
        }


def _plain() -> dict[str, Any]:
    """Return matplotlib's own settings, without those of what shows figures."""
    known = matplotlib.rcParamsDefault.copy()
    return {name: value for name, value in known.items() if not name.startswith("backend")}


SCREEN = Layout("screen", 5.8, 8.6, 9, ("png", "svg"))
PAPER = Layout("paper", 3.25, 6.75, 7, ("pdf", "svg"), folder="paper")
"""The columns of a two-column article, and the size of its captions."""
SLIDE = Layout("slide", 13.333, 13.333, 14, ("png", "svg"))
"""A slide of 16:9, whose text is read from afar; nothing else is drawn in it."""

LAYOUTS: Registry[Layout] = Registry("style")
for _layout in (SCREEN, PAPER):
    LAYOUTS.add(_layout.name, _layout)


def chosen_layouts(style: str) -> tuple[Layout, ...]:
    """Return the layouts that figures are written in: that of the screen always.

    Raises:
        EvalkitError: the style is unknown.
    """
    return tuple(dict.fromkeys((SCREEN, LAYOUTS.get(style))))
