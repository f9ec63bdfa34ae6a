"""How lines, bars, names, floors and log axes are drawn: the parts that all figures share."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from evalkit.figures.palette import FLOOR, Style
from evalkit.results.spreads import Spread, spread
from evalkit.results.sweeps import damping_places

_LARGEST = 1e100  # on an axis, and its inverse the smallest: products of its ends must not overflow
_LINE = 1.28  # from one end label to the next, in font sizes
_WIDER = 2.5  # a number beside another takes so much more room than above it
# Ticks in a decade of a log axis that spans at most so many decades.
_STEPS = {1: (1, 1.5, 2, 3, 4, 5, 6, 8), 2: (1, 2, 5), 3: (1, 3), math.inf: (1,)}


def curve(ax: Axes, x: pd.Series, found: Spread, style: Style) -> None:
    """Draw means joined by a line with bars of one sigma; infinite means at the upper edge."""
    xs, means = x.to_numpy(float), found.mean
    drawn = np.isfinite(means)
    line: dict[str, Any] = {
        **line_style(style),
        "marker": style.marker,
        "markeredgewidth": 0,
        "zorder": 3,
    }
    size = rcParams["lines.markersize"] * (1 if len(xs) <= 25 else 0.55)
    ax.plot(xs, np.where(drawn, means, np.nan), markersize=size, **line)
    bars = drawn & (found.high > found.low)
    if bars.any():
        lower, upper = found.low[bars], found.high[bars]
        if ax.get_yscale() == "log":
            lower = bar_start(means[bars], lower)
        ax.vlines(
            xs[bars], lower, upper, colors=style.color, linewidth=_font() / 10, alpha=0.55, zorder=2
        )
    edge = xs[np.isposinf(means)]
    if edge.size:
        up: dict[str, Any] = {"marker": 6, "linestyle": "", "color": style.color}
        up["markersize"] = _font() / 1.5
        ax.plot(edge, np.ones(edge.size), transform=ax.get_xaxis_transform(), clip_on=False, **up)


def bar_start(mean: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return where bars start on a log axis: one sigma below, at most half a decade down."""
    return np.maximum(low, mean / math.sqrt(10))


def line_style(style: Style) -> dict[str, Any]:
    pattern = (0, style.dashes) if style.dashes else "-"
    return {"color": style.color, "linestyle": pattern}


def _font() -> float:
    """The size of text in points, which everything else goes with."""
    return float(rcParams["font.size"])


def shade_floor(ax: Axes, x: pd.Series, floor: pd.Series) -> None:
    """Draw the floor and shade what no direction reaches."""
    xs, floors = x.to_numpy(float), floor.to_numpy(float)
    if len(xs) == 1:
        xs, floors = xs[0] + np.array([-0.02, 0.02]), floors.repeat(2)
    ax.plot(xs, floors, **line_style(FLOOR), zorder=2)
    bottom = ax.get_ylim()[0]
    ax.fill_between(xs, bottom, floors, color=FLOOR.color, alpha=0.16, linewidth=0, zorder=1)


def last_value(values: pd.Series) -> float:
    present = values.dropna()
    return float(present.iloc[-1]) if len(present) else math.nan


def label_ends(ax: Axes, ends: Sequence[tuple[str, float, Style]]) -> None:
    """Name lines beside the right edge at their last value, moved apart where they would overlap.

    Values off the axis get no name, infinite ones a name at the upper edge.
    """
    lower, upper = ax.get_ylim()
    shown = [end for end in ends if lower <= end[1] <= upper or math.isinf(end[1])]
    shown.sort(key=lambda end: end[1])
    to_axes = ax.transScale + ax.transLimits
    heights = [min(float(to_axes.transform((0, min(end[1], upper)))[1]), 1) for end in shown]
    names = [name + (" (infinite)" if math.isinf(value) else "") for name, value, _ in shown]
    names = [_folded(name) for name in names]
    width, height = np.array(ax.get_window_extent().size) * 72 / ax.figure.dpi
    places = _spread_out(heights, names, height)
    for name, (_, _, style), start, place in zip(names, shown, heights, places, strict=True):
        _label(ax, name, style, (start, place), width)


def _folded(name: str) -> str:
    return textwrap.fill(name, 20, break_long_words=False)


def label_lines(names: Iterable[str]) -> float:
    """Return the height that names at the ends of lines take above one another, in font sizes."""
    return _LINE * sum(_folded(name).count("\n") + 1 for name in names)


def _spread_out(heights: list[float], names: list[str], points: float) -> list[float]:
    """Return label places in axes units, nearest to ``heights`` in order without overlap."""
    if not heights:
        return []
    lines = np.array([name.count("\n") + 1 for name in names])
    line = _LINE * _font() / points
    tops = np.cumsum(lines) * line
    centres = tops - lines * line / 2
    moved = _rising(np.array(heights) - centres)
    room = max(1 - float(tops[-1]), 0) + line / 2
    return list(np.clip(moved, -line / 2, room) + centres)


def _rising(values: np.ndarray) -> list[float]:
    """Return the sequence that never falls and is nearest to ``values``, in least squares.

    Neighbours that fall are pooled into their mean. SciPy's own takes half a second to import.
    """
    pools: list[list[float]] = []
    for value in values.tolist():
        pools.append([value])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return [fmean(pool) for pool in pools for _ in pool]


def _label(ax: Axes, name: str, style: Style, places: tuple[float, float], width: float) -> None:
    """Draw a leader from the line's end to its label, a piece of the line, and the name.

    Args:
        places: the places of the end and of the label, in axes units.
        width: the width of the axes in points.
    """
    start, place = places
    edge, corner, middle, end, text = (
        1 + np.array([0.2, 1.1, 2.3, 3.6, 4.0]) * _font() / width
    ).tolist()
    free: dict[str, Any] = {"transform": ax.transAxes, "clip_on": False}
    ax.plot([edge, corner], [start, place], color=style.color, linewidth=_font() / 15, **free)
    handle: dict[str, Any] = {**line_style(style), "marker": style.marker, "markeredgewidth": 0}
    ax.plot([corner, middle, end], [place] * 3, markevery=[1], **handle, **free)
    ax.text(text, place, name, va="center_baseline", parse_math=False, **free)


def bar_ends(table: pd.DataFrame, column: str) -> np.ndarray:
    """Return the ends of all finite bars of a column on a log axis."""
    found = spread(table, column)
    kept = np.isfinite(found.mean) & (found.mean > 0)
    mean, low, high = found.mean[kept], found.low[kept], found.high[kept]
    known = np.isfinite(low)
    return np.concatenate(
        [bar_start(mean, np.where(known, low, mean)), np.where(known, high, mean)]
    )


def log_limits(values: np.ndarray, always: float) -> tuple[float, float]:
    """Return limits a little beyond all positive values that an axis can hold and ``always``."""
    held = (values > 1 / _LARGEST) & (values < _LARGEST)
    inside = np.append(values[held], always)
    margin = 10 ** (0.06 + 0.03 * math.log10(inside.max() / inside.min()))
    return float(inside.min() / margin), float(inside.max() * margin)


def log_axis(ax: Axes, lower: float, upper: float, which: Literal["x", "y"] = "y") -> None:
    """Give ``ax`` a log axis with few round ticks, two at least: what :func:`_log_ticks` finds."""
    axis: Any = ax.yaxis if which == "y" else ax.xaxis
    ax.set(**{f"{which}scale": "log"})
    ax.set(**{f"{which}lim": (lower, upper)})
    decades = math.log10(upper / lower)
    ticks = _log_ticks(lower, upper, decades * (1 if which == "y" else _WIDER))
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axis.set_minor_formatter(NullFormatter())
    if not 1 < decades <= 4:
        axis.set_minor_locator(NullLocator())


def _log_ticks(lower: float, upper: float, crowded: float) -> list[float]:
    """Return ticks of a log axis: 1-2-5 steps, decades, or every few decades.

    Where fewer than two of them lie between the ends, the steps are finer, and at last even ones.

    Args:
        lower: the lower end.
        upper: the upper one.
        crowded: decades between them, more of an axis whose labels stand side by side.
    """
    stride = max(1, round(crowded / 5))
    powers = range(math.floor(math.log10(lower)), math.ceil(math.log10(upper)) + 1)
    fits = (steps for most, steps in _STEPS.items() if crowded <= most)
    finer = [steps for most, steps in _STEPS.items() if most <= crowded]
    for steps in (next(fits), *reversed(finer)):
        ticks = [step * 10.0**power for power in powers if power % stride == 0 for step in steps]
        inside = [tick for tick in ticks if lower <= tick <= upper]
        if len(inside) > 1:
            return inside
    even = MaxNLocator(4, steps=[1, 2, 5, 10], min_n_ticks=2).tick_values(lower, upper)
    return [float(tick) for tick in even if lower <= tick <= upper]


def _tick(value: float) -> str:
    if value == 0 or 1e-3 <= value < 1e4:
        return f"{value:g}"
    digits, _, power = f"{value:.5e}".partition("e")
    factor = "" if float(digits) == 1 else rf"{float(digits):g} \cdot "
    return f"${factor}10^{{{int(power)}}}$"


def damping_axis(ax: Axes, dampings: pd.Series) -> dict[float, float]:
    """Give ``ax`` a log axis of dampings; return their places."""
    places = damping_places(dampings)
    ax.set_xscale("log")
    ax.set_xlim(min(places.values()) / 3, max(places.values()) * 3)
    shown = list(places)[:: math.ceil(len(places) / 5)]
    ax.xaxis.set_major_locator(FixedLocator([places[value] for value in shown]))
    labels = {places[value]: _tick(value) for value in shown}
    ax.xaxis.set_major_formatter(FuncFormatter(lambda place, _: labels.get(place, "")))
    ax.xaxis.set_minor_locator(FixedLocator(list(places.values())))
    ax.xaxis.set_minor_formatter(NullFormatter())
    return places
