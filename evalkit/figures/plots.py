"""What one panel shows: each function takes a table and an axes, draws, and returns the axes.

A method has one colour, marker and dash pattern in every figure, told apart in grey print as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from evalkit.figures.drawing import (
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
from evalkit.figures.groups import Group
from evalkit.figures.palette import FLOOR, IMBALANCE, QUIET, Style, method_styles
from evalkit.names import display_name
from evalkit.results.spreads import spread

PROGRESS = "Training progress (0 = initialised, 1 = end)"
_SECOND: Any = {"marker": "^", "dashes": (1.5, 1)}
"""Marker and dashes of a method's second line in a panel; the colour stays."""
RATIO = r"Ratio to SGD, $\gamma\,/\,\gamma_{\mathrm{SGD}}$"


def plot_ratio(
    summary: pd.DataFrame,
    floors: pd.DataFrame,
    ax: Axes,
    limits: tuple[float, float] | None = None,
    group: Group | None = None,
) -> Axes:
    """Draw gamma relative to SGD against progress: a line per method, SGD at 1, the floor.

    Args:
        summary: the result of ``results.summarize``, one damping per method.
        floors: the result of ``results.summarize_batches``.
        ax: where to draw.
        limits: the limits of the log axis; those of the data by default.
        group: the methods to draw; all by default.
    """
    styles = method_styles(summary["method"])
    log_axis(ax, *(limits or ratio_limits(summary, floors)))
    ax.axhline(1, **line_style(styles["sgd"]), zorder=2)
    shade_floor(ax, floors["progress"], floors["floor_ratio_mean"])
    ends = [("SGD", 1.0, styles["sgd"]), ("floor", last_value(floors["floor_ratio_mean"]), FLOOR)]
    for method, rows, style in _by_method(summary, group):
        if method != "sgd":
            curve(ax, rows["progress"], spread(rows, "ratio"), style)
            ends.append((display_name(method), last_value(rows["ratio_mean"]), style))
    ax.set(xlim=(-0.02, 1.02), ylabel=RATIO)
    label_ends(ax, ends)
    return ax


def plot_efficiency(summary: pd.DataFrame, ax: Axes, group: Group | None = None) -> Axes:
    """Draw efficiency, floor / gamma, against progress: a line per method on a linear axis.

    Args:
        summary: the result of ``results.summarize``, one damping per method.
        ax: where to draw.
        group: the methods to draw; all by default.
    """
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03), xlabel=PROGRESS)
    ax.set_ylabel(r"Efficiency, $\gamma_{\mathrm{floor}}\,/\,\gamma$")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.axhline(1, **line_style(FLOOR), zorder=2)
    ends = [("floor", 1.0, FLOOR)]
    for method, rows, style in _by_method(summary, group):
        mean = rows["efficiency_mean"]
        curve(ax, rows["progress"], spread(rows, "efficiency"), style)
        ends.append((display_name(method), last_value(mean), style))
    label_ends(ax, ends)
    return ax


def plot_imbalance(floors: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the imbalance of per-sample gradients and of logit gradients against progress.

    Args:
        floors: the result of ``results.summarize_batches``.
        ax: where to draw.
    """
    values = np.concatenate([bar_ends(floors, column) for column in IMBALANCE])
    log_axis(ax, *log_limits(values, 1.0))
    ends = []
    for column, (name, style) in IMBALANCE.items():
        mean = floors[f"{column}_mean"]
        curve(ax, floors["progress"], spread(floors, column), style)
        ends.append((name, last_value(mean), style))
    ax.set(xlim=(-0.02, 1.02), ylabel="Imbalance", xlabel=PROGRESS)
    label_ends(ax, ends)
    return ax


def plot_damping(
    summary: pd.DataFrame,
    floor: float,
    ax: Axes,
    limits: tuple[float, float],
    labels: bool = True,
    group: Group | None = None,
) -> Axes:
    """Draw gamma relative to SGD against damping at one checkpoint: a line per method.

    A ring marks each method's best damping.

    Args:
        summary: the result of ``results.summarize``, the rows of one checkpoint.
        floor: gamma_floor / gamma of SGD there.
        ax: where to draw.
        limits: the limits of the log axis of ratios.
        labels: whether lines are named.
        group: the methods to draw; all by default.
    """
    styles = method_styles(summary["method"])
    log_axis(ax, *limits)
    places = damping_axis(ax, summary["damping"])
    point = 2.2 * rcParams["lines.markersize"]
    ax.axhline(1, **line_style(styles["sgd"]), zorder=2)
    shade_floor(ax, pd.Series(ax.get_xlim()), pd.Series([floor, floor]))
    ends = [("SGD", 1.0, styles["sgd"]), ("floor", floor, FLOOR)]
    for method, rows, style in _by_method(summary, group):
        if method == "sgd":
            continue
        rows = rows.sort_values("damping")
        x = rows["damping"].map(places)
        curve(ax, x, spread(rows, "ratio"), style)
        ends.append((display_name(method), last_value(rows["ratio_mean"]), style))
        if np.isfinite(rows["ratio_mean"]).any():
            best = rows["ratio_mean"].fillna(np.inf).idxmin()
            ring: dict[str, Any] = {"markerfacecolor": "none", "color": style.color}
            ax.plot(x[best], rows["ratio_mean"][best], "o", markersize=point, **ring, zorder=4)
    if labels:
        label_ends(ax, ends)
    return ax


def plot_discussion(table: pd.DataFrame, column: str, ax: Axes) -> Axes:
    """Draw one column of the damping discussion against progress: a line per method and damping.

    Args:
        table: the result of ``sweeps.damping_discussion``.
        column: ``"ratio"``, on a log axis, or ``"cosine_sgd"``.
        ax: where to draw.
    """
    fixed = method_styles(table["method"])
    seen: set[str] = set()
    ends = []
    if column == "ratio":
        log_axis(ax, *log_limits(bar_ends(table, column), 1.0))
    else:
        ax.set_ylim(min(-0.03, float(table[f"{column}_mean"].min()) - 0.05), 1.03)
    for label, rows in table.groupby("label", sort=False):
        method = str(rows["method"].iloc[0])
        style = fixed[method] if method not in seen else replace(fixed[method], **_SECOND)
        seen.add(method)
        mean = rows[f"{column}_mean"]
        curve(ax, rows["progress"], spread(rows, column), style)
        ends.append((str(label), last_value(mean), style))
    ax.set(xlim=(-0.02, 1.02))
    label_ends(ax, ends)
    return ax


def plot_by_run(
    table: pd.DataFrame, column: str, ax: Axes, styles: Mapping[str, Style], log: bool = True
) -> Axes:
    """Draw one column against progress, a line per run: the tasks of one panel of the paper.

    Args:
        table: with columns run, progress, and the column's mean and sigma.
        column: its name without ``_mean``.
        ax: where to draw.
        styles: by run.
        log: whether the axis is logarithmic, else in percent; a shared axis keeps its limits.
    """
    scale_by_run(ax, table, column, log)
    for run, rows in table.groupby("run", sort=False):
        curve(ax, rows["progress"], spread(rows, column), styles[str(run)])
    ax.set(xlim=(-0.02, 1.02))
    return ax


def scale_by_run(ax: Axes, table: pd.DataFrame, column: str, log: bool) -> None:
    """Scale the y axis for a column of all runs: with a line at SGD's 1, or in percent.

    Args:
        ax: the panel.
        table: as for :func:`plot_by_run`.
        column: as for :func:`plot_by_run`.
        log: whether the axis is logarithmic, else in percent.
    """
    if log:
        log_axis(ax, *log_limits(bar_ends(table, column), 1.0))
        ax.axhline(1, **line_style(method_styles([])["sgd"]), zorder=1)
    else:
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1))


def ratio_limits(summary: pd.DataFrame, floors: pd.DataFrame) -> tuple[float, float]:
    """Return limits that hold every finite ratio with its bar, SGD's 1 and the floor."""
    floor = floors["floor_ratio_mean"].to_numpy(float)
    return log_limits(np.concatenate([bar_ends(summary, "ratio"), floor]), 1.0)


def _by_method(
    summary: pd.DataFrame, group: Group | None
) -> Iterator[tuple[str, pd.DataFrame, Style]]:
    """Yield each method of a group that has rows, with them and its style."""
    styles = method_styles(summary["method"])
    for method, rows in summary.groupby("method", sort=False):
        method = str(method)
        if group is None or method in group.methods:
            yield method, rows, styles[method]
        elif method in group.quiet:
            yield method, rows, replace(styles[method], color=QUIET)
