"""Pictures from the tables of a run, in the layout of the paper's Figure 2.

A plot function takes a table of ``results`` and an axes, draws, and returns the axes. A method
has one colour, marker and dash pattern in every figure, told apart in grey print as well.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evalkit.drawing import (
    FLOOR,
    Style,
    bar_ends,
    curve,
    damping_axis,
    label_ends,
    last_value,
    line_style,
    log_axis,
    log_limits,
    shade_floor,
)
from evalkit.errors import EvalkitError
from evalkit.results import display_name, near_zero, stages, summarize, summarize_batches
from evalkit.run import Run
from evalkit.tables import write_atomically

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
_PROGRESS = "Training progress (0 = initialised, 1 = end)"
_LABELS = (r"Ratio to SGD, $\gamma\,/\,\gamma_{\mathrm{SGD}}$", "The same, near 1")
_HEIGHTS = {1: [2.8], 2: [2.3, 2.1]}  # inches of the panels of ratios, by their number


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
    log_axis(ax, *(limits or ratio_limits(summary, floors)))
    ax.axhline(1, **line_style(styles["sgd"]), zorder=2)
    shade_floor(ax, floors["progress"], floors["floor_ratio_mean"])
    ends = [("SGD", 1.0, styles["sgd"]), ("floor", last_value(floors["floor_ratio_mean"]), FLOOR)]
    for method, rows in _methods(summary):
        if method != "sgd":
            curve(ax, rows["progress"], rows["ratio_mean"], rows["ratio_std"], styles[method])
            ends.append((display_name(method), last_value(rows["ratio_mean"]), styles[method]))
    ax.set(xlim=(-0.02, 1.02), ylabel=_LABELS[0])
    label_ends(ax, ends)
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
    ax.axhline(1, **line_style(FLOOR), zorder=2)
    ends = [("floor", 1.0, FLOOR)]
    for method, rows in _methods(summary):
        mean = rows["efficiency_mean"]
        curve(ax, rows["progress"], mean, rows["efficiency_std"], styles[method])
        ends.append((display_name(method), last_value(mean), styles[method]))
    label_ends(ax, ends)
    return ax


def plot_imbalance(floors: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the imbalance of per-sample gradients and of logit gradients against progress.

    Args:
        floors: of ``results.summarize_batches``.
        ax: where to draw.
    """
    values = np.concatenate([bar_ends(floors, column) for column in _IMBALANCE])
    log_axis(ax, *log_limits(values, 1.0))
    ends = []
    for column, (name, style) in _IMBALANCE.items():
        mean = floors[f"{column}_mean"]
        curve(ax, floors["progress"], mean, floors[f"{column}_std"], style)
        ends.append((name, last_value(mean), style))
    ax.set(xlim=(-0.02, 1.02), ylabel="Imbalance", xlabel=_PROGRESS)
    label_ends(ax, ends)
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
    log_axis(ax, *limits)
    places = damping_axis(ax, summary["damping"])
    ax.axhline(1, **line_style(styles["sgd"]), zorder=2)
    shade_floor(ax, pd.Series(ax.get_xlim()), pd.Series([floor, floor]))
    ends = [("SGD", 1.0, styles["sgd"]), ("floor", floor, FLOOR)]
    for method, rows in _methods(summary):
        if method == "sgd":
            continue
        rows = rows.sort_values("damping")
        x = rows["damping"].map(places)
        curve(ax, x, rows["ratio_mean"], rows["ratio_std"], styles[method])
        ends.append((display_name(method), last_value(rows["ratio_mean"]), styles[method]))
    if labels:
        label_ends(ax, ends)
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
    return log_limits(np.concatenate([bar_ends(summary, "ratio"), floor]), 1.0)


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
