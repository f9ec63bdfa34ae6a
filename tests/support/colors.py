"""Colours as the page shows them in dark mode, and how different two look."""

from __future__ import annotations

import re
from importlib import resources

import numpy as np
from matplotlib.colors import to_rgb

_FILTER = r"invert\(([\d.]+)\) hue-rotate\(180deg\) brightness\(([\d.]+)\)"
# hue-rotate(180deg) of the Filter Effects specification.
_TURN = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.9505, 1.0, 1.089])


def on_dark_paper(color: str) -> np.ndarray:
    """Return what the filter of the page's style sheet makes of a colour: red, green, blue."""
    css = resources.files("evalkit.report.page").joinpath("report.css").read_text("utf-8")
    [(share, brighter)] = re.findall(_FILTER, css)
    inverted = float(share) + np.array(to_rgb(color)) * (1 - 2 * float(share))
    turned = np.clip(_TURN @ np.clip(inverted, 0, 1), 0, 1)
    return np.clip(float(brighter) * turned, 0, 1)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the CIE76 difference of two colours; below 20 lines are hard to tell apart."""
    return float(np.linalg.norm(_lab(one) - _lab(other)))


def _lab(color: np.ndarray) -> np.ndarray:
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    ratio = _XYZ @ linear / _WHITE
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
