"""Pictures from the tables of a run, in the layout of the paper's Figure 2.

A plot function takes a table of ``results`` and an axes, draws, and returns the axes. A method
has one colour, marker and dash pattern in every figure, told apart in grey print as well.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from scipy.optimize import isotonic_regression

from evalkit.errors import EvalkitError
from evalkit.results import display_name, near_zero, stages, summarize, summarize_batches
from evalkit.run import Run, write_atomically

FORMATS = ("png", "svg")
_SETTINGS: Any = {
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9.5,
    # Where panels lie before the layout is worked out: near where they end up.
    "figure.subplot.bottom": 0.06,
    "figure.subplot.hspace": 0.06,
    "figure.subplot.top": 0.99,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "mathtext.fontset": "dejavusans",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "evalkit",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}
_WIDTH = 5.8  # inches
_LINE = 11.5  # points from one end label to the next
# Ticks in a decade of a log axis that spans at most so many decades.
_STEPS = {1: (1, 1.5, 2, 3, 4, 5, 6, 8), 2: (1, 2, 5), 3: (1, 3), math.inf: (1,)}
_PROGRESS = "Training progress (0 = initialised, 1 = end)"
_LABELS = (r"Ratio to SGD, $\gamma\,/\,\gamma_{\mathrm{SGD}}$", "The same, near 1")
_HEIGHTS = {1: [2.8], 2: [2.3, 2.1]}  # inches of the panels of ratios, by their number


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


# Okabe and Ito's colours, which the colour-blind tell apart; neighbours differ in lightness.
_STYLES = {
    "sgd": Style("#6e6e6e", ".", (4, 1.5)),
    "ef": Style("#d55e00", "v", (6, 1.5, 1.5, 1.5)),
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
    Style("#b2182b", "*", (1, 1.5)),
)
_FLOOR = Style("#8c8c8c", "", (1, 1.2))
_IMBALANCE = {
    "imbalance": ("parameters", Style("#1a1a1a", "o")),
    "logit_imbalance": ("logits", Style("#009e73", "s", (5, 1.5))),
}


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """Return a style per method: the fixed one where there is one, else the next spare one."""
    others = [method for method in dict.fromkeys(methods) if method not in _STYLES]
    return _STYLES | {name: _SPARE[place % len(_SPARE)] for place, name in enumerate(others)}


def plot_ratio(
    summary: pd.DataFrame,
    floors: pd.DataFrame,
    ax: Axes,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Draw gamma relative to SGD against progress: a line per method, SGD at 1, the floor.

    Args:
        summary: of ``results.summarize``, one damping per method.
        floors: of ``results.summarize_batches``.
        ax: where to draw.
        limits: of the log axis; those of the data by default.
    """
    styles = method_styles(summary["method"])
    _log_axis(ax, *(limits or ratio_limits(summary, floors)))
    ax.axhline(1, **_line(styles["sgd"]), zorder=2)
    _shade_floor(ax, floors["progress"], floors["floor_ratio_mean"])
    ends = [("SGD", 1.0, styles["sgd"]), ("floor", _last(floors["floor_ratio_mean"]), _FLOOR)]
    for method, rows in _methods(summary):
        if method != "sgd":
            _curve(ax, rows["progress"], rows["ratio_mean"], rows["ratio_std"], styles[method])
            ends.append((display_name(method), _last(rows["ratio_mean"]), styles[method]))
    ax.set(xlim=(-0.02, 1.02), ylabel=_LABELS[0])
    _label_ends(ax, ends)
    return ax


def plot_efficiency(summary: pd.DataFrame, ax: Axes) -> Axes:
    """Draw efficiency, floor / gamma, against progress: a line per method on a linear axis.

    Args:
        summary: of ``results.summarize``, one damping per method.
        ax: where to draw.
    """
    styles = method_styles(summary["method"])
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03), xlabel=_PROGRESS)
    ax.set_ylabel(r"Efficiency, $\gamma_{\mathrm{floor}}\,/\,\gamma$")
    ax.axhline(1, **_line(_FLOOR), zorder=2)
    ends = [("floor", 1.0, _FLOOR)]
    for method, rows in _methods(summary):
        mean = rows["efficiency_mean"]
        _curve(ax, rows["progress"], mean, rows["efficiency_std"], styles[method])
        ends.append((display_name(method), _last(mean), styles[method]))
    _label_ends(ax, ends)
    return ax


def plot_imbalance(floors: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the imbalance of per-sample gradients and of logit gradients against progress.

    Args:
        floors: of ``results.summarize_batches``.
        ax: where to draw.
    """
    values = np.concatenate([_reach(floors, column) for column in _IMBALANCE])
    _log_axis(ax, *_limits(values, 1.0))
    ends = []
    for column, (name, style) in _IMBALANCE.items():
        mean = floors[f"{column}_mean"]
        _curve(ax, floors["progress"], mean, floors[f"{column}_std"], style)
        ends.append((name, _last(mean), style))
    ax.set(xlim=(-0.02, 1.02), ylabel="Imbalance", xlabel=_PROGRESS)
    _label_ends(ax, ends)
    return ax


def plot_damping(
    summary: pd.DataFrame,
    floor: float,
    ax: Axes,
    limits: tuple[float, float],
    labels: bool = True,
) -> Axes:
    """Draw gamma relative to SGD against damping at one checkpoint: a line per method.

    Args:
        summary: of ``results.summarize``, the rows of one checkpoint.
        floor: gamma_floor / gamma of SGD there.
        ax: where to draw.
        limits: of the log axis of ratios.
        labels: whether lines are named.
    """
    styles = method_styles(summary["method"])
    _log_axis(ax, *limits)
    places = _damping_axis(ax, summary["damping"])
    ax.axhline(1, **_line(styles["sgd"]), zorder=2)
    _shade_floor(ax, pd.Series(ax.get_xlim()), pd.Series([floor, floor]))
    ends = [("SGD", 1.0, styles["sgd"]), ("floor", floor, _FLOOR)]
    for method, rows in _methods(summary):
        if method == "sgd":
            continue
        rows = rows.sort_values("damping")
        x = rows["damping"].map(places)
        _curve(ax, x, rows["ratio_mean"], rows["ratio_std"], styles[method])
        ends.append((display_name(method), _last(rows["ratio_mean"]), styles[method]))
    if labels:
        _label_ends(ax, ends)
    return ax


def ratio_figure(run: Run) -> Figure:
    """Return ratios above imbalance; ratios near 1 get a panel of their own when others are far."""
    summary, floors = near_zero(summarize(run)), summarize_batches(run)
    limits = _panel_limits(summary, floors)
    heights = [*_HEIGHTS[len(limits)], 1.6]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    for ax, limit, label in zip(panels[:-1], limits, _LABELS, strict=False):
        plot_ratio(summary, floors, ax, limit).set_ylabel(label)
    plot_imbalance(floors, panels[-1])
    figure.align_ylabels(panels)
    return figure


def efficiency_figure(run: Run) -> Figure:
    """Return efficiency against progress."""
    figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
    plot_efficiency(near_zero(summarize(run)), figure.subplots())
    return figure


def damping_figure(run: Run) -> Figure:
    """Return ratio against damping at the start, middle and end of training."""
    summary, floors = summarize(run), summarize_batches(run).set_index("checkpoint")
    chosen = stages(summary)
    shown = summary[summary["checkpoint"].isin(chosen.values())]
    limits = _panel_limits(shown, floors.loc[list(chosen.values())])
    heights = _HEIGHTS[len(limits)]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.7), layout="constrained")
    grid = figure.subplots(
        len(heights), len(chosen), sharex="col", sharey="row", squeeze=False, height_ratios=heights
    )
    for panels, limit, label in zip(grid, limits, _LABELS, strict=False):
        panels[0].set_ylabel(label)
        for ax, checkpoint in zip(panels, chosen.values(), strict=True):
            rows = summary[summary["checkpoint"] == checkpoint]
            floor = float(floors["floor_ratio_mean"].loc[checkpoint])
            plot_damping(rows, floor, ax, limit, labels=ax is panels[-1])
    for ax, (stage, checkpoint) in zip(grid[0], chosen.items(), strict=True):
        ax.set_title(f"{stage}: {checkpoint}", parse_math=False)
    figure.align_ylabels(grid[:, 0])
    figure.supxlabel("Damping", fontsize=9.5)
    return figure


def ratio_limits(summary: pd.DataFrame, floors: pd.DataFrame) -> tuple[float, float]:
    """Return limits that hold every finite ratio with its bar, SGD's 1 and the floor."""
    floor = floors["floor_ratio_mean"].to_numpy(float)
    return _limits(np.concatenate([_reach(summary, "ratio"), floor]), 1.0)


def _panel_limits(summary: pd.DataFrame, floors: pd.DataFrame) -> list[tuple[float, float]]:
    """Return the limits of the panels of ratios: all, and near 1 when others are far from it."""
    limits = ratio_limits(summary, floors)
    if limits[1] <= 8:
        return [limits]
    near = summary[summary["ratio_mean"] <= 2]
    return [limits, (ratio_limits(near, floors)[0], 2.2)]


def draw_figures(run: Run) -> dict[str, Figure]:
    """Return every figure of a run by file name: ratio, efficiency, and damping for a sweep."""
    with matplotlib.rc_context(_SETTINGS):
        figures = {"ratio": ratio_figure(run), "efficiency": efficiency_figure(run)}
        if run.scores["damping"].nunique() > 1:
            figures["damping"] = damping_figure(run)
    return figures


def write_figures(run: Run, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every figure as PNG (200 dots per inch) and SVG; the same run gives the same bytes.

    Args:
        run: its tables.
        folder: made when missing.

    Returns:
        The files, a PNG and an SVG per figure.

    Raises:
        EvalkitError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvalkitError(
            f"expected a folder for figures at {folder}, found: {error.strerror}; free the path"
        ) from error
    paths = []
    for name, figure in draw_figures(run).items():
        for kind in FORMATS:
            path = folder / f"{name}.{kind}"
            write_atomically(path, render(figure, kind))
            paths.append(path)
    return paths


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file of one kind, without a date."""
    file = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()


def _methods(summary: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    return ((str(method), rows) for method, rows in summary.groupby("method", sort=False))


def _curve(ax: Axes, x: pd.Series, mean: pd.Series, std: pd.Series, style: Style) -> None:
    """Draw means joined by a line with bars of one sigma; infinite means at the upper edge."""
    xs, means, sigmas = (values.to_numpy(float) for values in (x, mean, std))
    drawn = np.isfinite(means)
    line: dict[str, Any] = {
        **_line(style),
        "marker": style.marker,
        "markeredgewidth": 0,
        "zorder": 3,
    }
    size = 4.5 if len(xs) <= 25 else 2.5
    ax.plot(xs, np.where(drawn, means, np.nan), markersize=size, **line)
    bars = drawn & (sigmas > 0)
    if bars.any():
        middle, upper = means[bars], means[bars] + sigmas[bars]
        lower = (
            bar_start(middle, sigmas[bars]) if ax.get_yscale() == "log" else middle - sigmas[bars]
        )
        ax.vlines(xs[bars], lower, upper, colors=style.color, linewidth=0.9, alpha=0.55, zorder=2)
    edge = xs[np.isposinf(means)]
    if edge.size:
        up: dict[str, Any] = {"marker": 6, "linestyle": "", "color": style.color, "markersize": 6}
        ax.plot(edge, np.ones(edge.size), transform=ax.get_xaxis_transform(), clip_on=False, **up)


def bar_start(mean: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return where bars start on a log axis: mean - sigma, at most half a decade down."""
    return np.maximum(mean - sigma, mean / math.sqrt(10))


def _line(style: Style) -> dict[str, Any]:
    pattern = (0, style.dashes) if style.dashes else "-"
    return {"color": style.color, "linestyle": pattern, "linewidth": 1.5}


def _shade_floor(ax: Axes, x: pd.Series, floor: pd.Series) -> None:
    """Draw the floor and shade what no direction reaches."""
    xs, floors = x.to_numpy(float), floor.to_numpy(float)
    if len(xs) == 1:
        xs, floors = xs[0] + np.array([-0.02, 0.02]), floors.repeat(2)
    ax.plot(xs, floors, **_line(_FLOOR), zorder=2)
    bottom = ax.get_ylim()[0]
    ax.fill_between(xs, bottom, floors, color=_FLOOR.color, alpha=0.16, linewidth=0, zorder=1)


def _last(values: pd.Series) -> float:
    present = values.dropna()
    return float(present.iloc[-1]) if len(present) else math.nan


def _label_ends(ax: Axes, ends: Sequence[tuple[str, float, Style]]) -> None:
    """Name lines beside the right edge at their last value, moved apart where they would overlap.

    Values off the axis get no name, infinite ones a name at the upper edge.
    """
    lower, upper = ax.get_ylim()
    shown = [end for end in ends if lower <= end[1] <= upper or math.isinf(end[1])]
    shown.sort(key=lambda end: end[1])
    to_axes = ax.transScale + ax.transLimits
    heights = [min(float(to_axes.transform((0, min(end[1], upper)))[1]), 1) for end in shown]
    names = [name + (" (infinite)" if math.isinf(value) else "") for name, value, _ in shown]
    names = [textwrap.fill(name, 20, break_long_words=False) for name in names]
    width, height = np.array(ax.get_window_extent().size) * 72 / ax.figure.dpi
    places = _spread_out(heights, names, height)
    for name, (_, _, style), start, place in zip(names, shown, heights, places, strict=True):
        _label(ax, name, style, (start, place), width)


def _spread_out(heights: list[float], names: list[str], points: float) -> list[float]:
    """Return label places in axes units, nearest to ``heights`` in order without overlap."""
    if not heights:
        return []
    lines = np.array([name.count("\n") + 1 for name in names])
    tops = np.cumsum(lines) * _LINE / points
    centres = tops - lines * _LINE / points / 2
    moved = isotonic_regression(np.array(heights) - centres).x
    room = max(1 - float(tops[-1]), 0) + _LINE / points / 2
    return list(np.clip(moved, -_LINE / points / 2, room) + centres)


def _label(ax: Axes, name: str, style: Style, places: tuple[float, float], width: float) -> None:
    """Draw a leader from the line's end to its label, a piece of the line, and the name.

    Args:
        places: of the end and of the label, in axes units.
        width: of the axes in points.
    """
    start, place = places
    edge, corner, middle, end, text = (1 + np.array([2, 10, 21, 32, 36]) / width).tolist()
    free: dict[str, Any] = {"transform": ax.transAxes, "clip_on": False}
    ax.plot([edge, corner], [start, place], color=style.color, linewidth=0.6, **free)
    handle: dict[str, Any] = {**_line(style), "marker": style.marker, "markeredgewidth": 0}
    ax.plot([corner, middle, end], [place] * 3, markevery=[1], markersize=4.5, **handle, **free)
    ax.text(text, place, name, va="center_baseline", fontsize=9, parse_math=False, **free)


def _reach(table: pd.DataFrame, column: str) -> np.ndarray:
    """Return the ends of all finite bars of a column on a log axis."""
    mean = table[f"{column}_mean"].to_numpy(float)
    sigma = np.nan_to_num(table[f"{column}_std"].to_numpy(float))
    kept = np.isfinite(mean) & (mean > 0)
    mean, sigma = mean[kept], sigma[kept]
    return np.concatenate([bar_start(mean, sigma), mean + sigma])


def _limits(values: np.ndarray, always: float) -> tuple[float, float]:
    """Return limits a little beyond all finite positive values and ``always``."""
    inside = np.append(values[np.isfinite(values) & (values > 0)], always)
    margin = 10 ** (0.06 + 0.03 * math.log10(inside.max() / inside.min()))
    return float(inside.min() / margin), float(inside.max() * margin)


def _log_axis(ax: Axes, lower: float, upper: float) -> None:
    """Give ``ax`` a log axis with few round ticks: 1-2-5 steps, decades, or every few decades."""
    ax.set_yscale("log")
    ax.set_ylim(lower, upper)
    decades = math.log10(upper / lower)
    fits = (steps for most, steps in _STEPS.items() if decades <= most)
    steps = next(fits)
    stride = max(1, round(decades / 5))
    powers = range(math.floor(math.log10(lower)), math.ceil(math.log10(upper)) + 1)
    ticks = [step * 10.0**power for power in powers if power % stride == 0 for step in steps]
    ax.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if lower <= tick <= upper]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    if not 1 < decades <= 4:
        ax.yaxis.set_minor_locator(NullLocator())


def _tick(value: float) -> str:
    if value == 0 or 1e-3 <= value < 1e4:
        return f"{value:g}"
    return f"$10^{{{round(math.log10(value))}}}$"


def _damping_axis(ax: Axes, dampings: pd.Series) -> dict[float, float]:
    """Give ``ax`` a log axis of dampings, zero two decades below the rest; return their places."""
    present = sorted({float(value) for value in dampings})
    positive = [value for value in present if value > 0] or [1.0]
    places = {value: value if value > 0 else positive[0] / 100 for value in present}
    ax.set_xscale("log")
    ax.set_xlim(min(places.values()) / 3, max(places.values()) * 3)
    shown = present[:: math.ceil(len(present) / 5)]
    ax.xaxis.set_major_locator(FixedLocator([places[value] for value in shown]))
    labels = {places[value]: _tick(value) for value in shown}
    ax.xaxis.set_major_formatter(FuncFormatter(lambda place, _: labels.get(place, "")))
    ax.xaxis.set_minor_locator(FixedLocator(list(places.values())))
    ax.xaxis.set_minor_formatter(NullFormatter())
    return places
