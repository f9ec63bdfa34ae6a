"""Figures of trainings side by side: curves of losses and gammas, and the one against the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from evalkit.figures.drawing import bar_start, curve, line_style, log_axis, log_limits
from evalkit.figures.groups import Group, groups_of
from evalkit.figures.layouts import SCREEN, Layout
from evalkit.figures.palette import QUIET, Style, method_styles
from evalkit.figures.plots import PROGRESS, RATIO
from evalkit.figures.run_figures import settled
from evalkit.names import display_name
from evalkit.results.comparisons import Comparison
from evalkit.results.optimizer_ratios import STAGES, stage_ratios
from evalkit.results.spreads import geometric_spread, spread
from evalkit.results.training_curves import accuracy_curves, loss_curves
from evalkit.results.trainings import contender_table

_LOSS = "Loss of the steps"
_FINAL = "Final training loss"
_TITLES = {"own": "own trajectory", "reference": "reference"}
_ROW = 2.4  # inches of a row of panels


def draw_comparison(comparison: Comparison, layout: Layout = SCREEN) -> dict[str, Figure]:
    """Return the figures of a comparison by file name.

    Always curves; ranking where any gamma is known.
    """
    with matplotlib.rc_context(layout.settings()):
        figures = {"curves": curves_figure(comparison, layout)}
        if len(comparison.correlations):
            figures["ranking"] = ranking_figure(comparison, layout)
        return {name: settled(figure) for name, figure in figures.items()}


def curves_figure(comparison: Comparison, layout: Layout = SCREEN) -> Figure:
    """Return loss, validation accuracy and gamma on the own trajectory against progress.

    A line per contender with its spread over seeds; many have a row of panels for each family.
    """
    names = [contender.name for contender in comparison.contenders]
    tables = {
        _LOSS: loss_curves(comparison.contenders),
        "Validation accuracy": accuracy_curves(comparison.contenders),
        RATIO: _own_ratios(comparison.ratios),
    }
    tables = {label: table for label, table in tables.items() if len(table)}
    groups, styles = groups_of(names), method_styles(names)
    figure, grid = _grid(len(groups), max(len(tables), 1), "col", layout)
    for panels, group in zip(grid, groups, strict=True):
        for ax, table in zip(panels, tables.values(), strict=False):
            plot_curves(table, ax, group, styles)
        panels[0].set_ylabel(group.title)
        _legend(panels[-1], group, styles)
    for ax, label in zip(grid[0], tables, strict=False):
        ax.set_title(label)
    figure.supxlabel(PROGRESS, fontsize=1.05 * layout.font)
    return figure


def plot_curves(table: pd.DataFrame, ax: Axes, group: Group, styles: Mapping[str, Style]) -> Axes:
    """Draw one quantity against progress, a line per contender of a group, with its spread.

    Args:
        table: the result of ``training_curves.loss_curves`` or ``accuracy_curves``, or such a
            table of ratios; losses and ratios have a log axis where all are positive.
        ax: where to draw.
        group: the contenders to draw.
        styles: by contender.
    """
    column = next(name for name in table if name.endswith("_mean")).removesuffix("_mean")
    means = table[f"{column}_mean"].to_numpy(float)
    known = means[np.isfinite(means)]
    if column == "validation_accuracy":
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    elif known.size and (known > 0).all():
        log_axis(ax, *log_limits(known, float(known[0])))
    if column == "ratio":
        ax.axhline(1, **line_style(method_styles([])["sgd"]), zorder=1)
    for name in group.shown:
        rows = table[table["optimizer"] == name]
        style = styles[name]
        if name in group.quiet:
            style = Style(QUIET, style.marker, style.dashes)
        if column == "loss":
            _band(ax, rows, style)
        else:
            curve(ax, rows["progress"], spread(rows, column), style)
    ax.set(xlim=(-0.02, 1.02))
    return ax


def _band(ax: Axes, rows: pd.DataFrame, style: Style) -> None:
    """Draw mean losses as a line and one sigma over seeds as a band."""
    x, found = rows["progress"].to_numpy(float), spread(rows, "loss")
    ax.plot(x, found.mean, **line_style(style), zorder=3)
    low = found.low
    if ax.get_yscale() == "log":
        low = bar_start(found.mean, low)
    ax.fill_between(x, low, found.high, color=style.color, alpha=0.18, linewidth=0, zorder=2)


def _own_ratios(ratios: pd.DataFrame) -> pd.DataFrame:
    """Return the ratios on own trajectories: over seeds where there are several, else batches."""
    rows = []
    own = ratios[ratios["trajectory"] == "own"]
    for (name, progress), group in own.groupby(["optimizer", "progress"], sort=False):
        mean, factor = geometric_spread(group["ratio_mean"].to_numpy(float))
        if len(group) == 1:
            factor = float(group["ratio_factor"].iloc[0])
        rows.append([name, progress, mean, factor])
    return pd.DataFrame(rows, columns=["optimizer", "progress", "ratio_mean", "ratio_factor"])


def ranking_figure(comparison: Comparison, layout: Layout = SCREEN) -> Figure:
    """Return final training loss against gamma: a row per trajectory, a column per stage.

    A point is an optimizer, with one sigma over its seeds; above each panel is the rank
    correlation with its interval.
    """
    names = [contender.name for contender in comparison.ranked]
    styles = method_styles(names)
    trajectories = list(dict.fromkeys(comparison.correlations["trajectory"]))
    figure, grid = _grid(len(trajectories), len(STAGES), "all", layout)
    losses = contender_table(comparison.ranked).set_index("optimizer")
    for panels, trajectory in zip(grid, trajectories, strict=True):
        found = {name: stage_ratios(comparison.ratios, trajectory, name) for name in names}
        for ax, stage in zip(panels, STAGES, strict=True):
            by_name = {name: table[stage].to_numpy(float) for name, table in found.items()}
            plot_ranking(by_name, losses, ax, styles)
            rows = comparison.correlations
            row = rows[(rows["trajectory"] == trajectory) & (rows["stage"] == stage)].iloc[0]
            ax.set_title(_ranking_title(stage, row), fontsize=0.92 * layout.font)
            ax.tick_params(labelleft=ax is panels[0])
        panels[0].set_ylabel(f"{_FINAL}\n{_TITLES[trajectory]}")
        drawn = tuple(name for name, table in found.items() if len(table))
        _legend(panels[-1], Group("", drawn), styles, lines=False)
    figure.supxlabel(RATIO, fontsize=1.05 * layout.font)
    return figure


def _ranking_title(stage: str, row: pd.Series) -> str:
    if math.isnan(row["rho"]):
        return stage
    rho, low, high = (f"{row[name]:.2f}".replace("-", "−") for name in ("rho", "low", "high"))
    return f"{stage}\nρ = {rho} ({low} to {high})"


def plot_ranking(
    ratios: Mapping[str, np.ndarray], losses: pd.DataFrame, ax: Axes, styles: Mapping[str, Style]
) -> Axes:
    """Draw final training loss against the ratio of gamma, a point per contender.

    Args:
        ratios: by contender, a value per seed.
        losses: the result of ``trainings.contender_table`` by contender.
        ax: where to draw.
        styles: by contender.
    """
    points = {}
    for name, values in ratios.items():
        mean, factor = geometric_spread(values[~np.isnan(values)])
        final, sigma = (float(losses.at[name, f"final_loss_{kind}"]) for kind in ("mean", "std"))
        if 0 < mean < math.inf and 0 < final < math.inf:
            points[name] = (mean, factor if factor > 1 else 1.0, final, sigma if sigma > 0 else 0.0)
    if not points:
        ax.set(xticks=[], yticks=[])
        return ax
    table = np.array(list(points.values()))
    log_axis(ax, *log_limits(table[:, 0], 1.0), "x")
    finals = losses["final_loss_mean"].to_numpy(float)
    log_axis(ax, *log_limits(finals[np.isfinite(finals)], float(table[0, 2])))
    for name, (mean, factor, final, sigma) in points.items():
        style = styles[name]
        thin: dict[str, Any] = {"color": style.color, "linewidth": rcParams["font.size"] / 10}
        ax.plot([mean / factor, mean * factor], [final, final], alpha=0.55, zorder=2, **thin)
        low = float(bar_start(np.array(final), np.array(final - sigma)))
        ax.plot([mean, mean], [low, final + sigma], alpha=0.55, zorder=2, **thin)
        ax.plot(mean, final, marker=style.marker, color=style.color, linestyle="", zorder=3)
    ax.axvline(1, **line_style(method_styles([])["sgd"]), zorder=1)
    return ax


def _legend(ax: Axes, group: Group, styles: Mapping[str, Style], lines: bool = True) -> None:
    """Name the contenders of a group beside the last panel of its row."""
    handles = [
        Line2D(
            [],
            [],
            marker=styles[name].marker,
            **{
                **(line_style(styles[name]) if lines else {"linestyle": ""}),
                "color": QUIET if name in group.quiet else styles[name].color,
            },
        )
        for name in group.shown
    ]
    names = [display_name(name) for name in group.shown]
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.02)}
    ax.legend(handles, names, frameon=False, borderaxespad=0, fontsize="small", **place)


def _grid(
    rows: int, columns: int, shared: Literal["all", "col"], layout: Layout
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a grid of panels; heights are given for the text of a screen.

    Args:
        rows: of panels.
        columns: of panels.
        shared: which panels have one y axis.
        layout: its sizes.
    """
    height = (_ROW * rows + 0.6) * layout.font / SCREEN.font
    figure = Figure(figsize=(layout.two_columns, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=shared).tolist()
