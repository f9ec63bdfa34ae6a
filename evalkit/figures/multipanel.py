"""Figures of several panels, in the layout of the paper's: one run, or a line per run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evalkit.figures.drawing import line_style
from evalkit.figures.layouts import SCREEN, Layout
from evalkit.figures.palette import run_styles
from evalkit.figures.plots import (
    PROGRESS,
    RATIO,
    plot_by_run,
    plot_damping,
    plot_discussion,
    plot_efficiency,
    plot_imbalance,
    plot_ratio,
    ratio_limits,
)
from evalkit.names import display_name
from evalkit.results.pairs import Pair, compare_runs, named
from evalkit.results.summaries import near_zero, stages, summarize, summarize_batches
from evalkit.storage.run_folder import Run

_LABELS = (RATIO, "The same, near 1")
_HEIGHTS = {1: [2.8], 2: [2.3, 2.1]}  # inches of the panels of ratios, by their number


def ratio_figure(run: Run, layout: Layout = SCREEN) -> Figure:
    """Return ratios above imbalance; ratios near 1 get a panel of their own when others are far."""
    summary, floors = near_zero(summarize(run)), summarize_batches(run)
    limits = _panel_limits(summary, floors)
    heights = [*_HEIGHTS[len(limits)], 1.6]
    figure = _figure(layout.one_column, sum(heights) + 0.5, layout)
    panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    for ax, limit, label in zip(panels[:-1], limits, _LABELS, strict=False):
        plot_ratio(summary, floors, ax, limit).set_ylabel(label)
    plot_imbalance(floors, panels[-1])
    figure.align_ylabels(panels)
    return figure


def efficiency_figure(run: Run, layout: Layout = SCREEN) -> Figure:
    """Return efficiency against progress."""
    figure = _figure(layout.one_column, 3.2, layout)
    plot_efficiency(near_zero(summarize(run)), figure.subplots())
    return figure


def damping_figure(run: Run, layout: Layout = SCREEN) -> Figure:
    """Return ratio against damping at the start, middle and end of training (paper's E3)."""
    summary, floors = summarize(run), summarize_batches(run).set_index("checkpoint")
    chosen = stages(summary)
    shown = summary[summary["checkpoint"].isin(chosen.values())]
    limits = _panel_limits(shown, floors.loc[list(chosen.values())])
    heights = _HEIGHTS[len(limits)]
    figure = _figure(layout.two_columns, sum(heights) + 0.7, layout)
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
    figure.supxlabel("Damping", fontsize=1.05 * layout.font)
    return figure


def discussion_figure(table: pd.DataFrame, layout: Layout = SCREEN) -> Figure:
    """Return EF at two dampings beside iEF, and the cosine of each to SGD (author response).

    Args:
        table: the result of ``sweeps.damping_discussion``.
        layout: its sizes.
    """
    figure = _figure(layout.one_column, 4.4, layout)
    upper, lower = figure.subplots(2, sharex=True)
    plot_discussion(table, "ratio", upper).set_ylabel(r"$\gamma\,/\,\gamma_{\mathrm{iEF}}$")
    plot_discussion(table, "cosine_sgd", lower).set(ylabel="Cosine to SGD", xlabel=PROGRESS)
    figure.align_ylabels([upper, lower])
    return figure


def pairs_figure(runs: Sequence[Run], pairs: Sequence[Pair], layout: Layout = SCREEN) -> Figure:
    """Return a panel per pair of methods and one of imbalance, a line per run (paper's E1)."""
    table = compare_runs(runs, pairs)
    drawings = [
        (f"Ratio {pair.label}", table[table["pair"] == pair.label], "ratio", True) for pair in pairs
    ]
    batches = _by_run(runs, summarize_batches)
    drawings.append(("Imbalance", batches, "imbalance", True))
    return _panels(drawings, list(named(runs)), layout)


def efficiency_of_runs_figure(
    runs: Sequence[Run], methods: Sequence[str], layout: Layout = SCREEN
) -> Figure:
    """Return efficiency against progress: a panel per method, a line per run."""
    table = _by_run(runs, lambda run: near_zero(summarize(run)))
    drawings = [
        (f"Efficiency of {display_name(method)}", table[table["method"] == method], "efficiency")
        for method in methods
    ]
    return _panels([(*drawing, False) for drawing in drawings], list(named(runs)), layout)


def _by_run(runs: Sequence[Run], table: Callable[[Run], pd.DataFrame]) -> pd.DataFrame:
    tables = [table(run).assign(run=name) for name, run in named(runs).items()]
    return pd.concat(tables, ignore_index=True)


def _panels(
    drawings: Sequence[tuple[str, pd.DataFrame, str, bool]], names: Sequence[str], layout: Layout
) -> Figure:
    """Return panels in rows of three, with the names of the runs below where there are several."""
    columns = min(3, len(drawings))
    rows = math.ceil(len(drawings) / columns)
    width = layout.two_columns if columns > 1 else layout.one_column
    figure = _figure(width, 2.5 * rows + 0.6, layout)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
    styles = run_styles(names)
    for ax, (label, table, column, log) in zip(grid, drawings, strict=False):
        plot_by_run(table, column, ax, styles, log).set_ylabel(label)
    for ax in grid[len(drawings) :]:
        ax.set_visible(False)
    for ax in grid[max(0, len(drawings) - columns) : len(drawings)]:
        ax.tick_params(labelbottom=True)
    figure.supxlabel(PROGRESS, fontsize=1.05 * layout.font)
    if len(names) > 1:
        handles = [
            Line2D([], [], **line_style(styles[name]), marker=styles[name].marker) for name in names
        ]
        figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _figure(width: float, height: float, layout: Layout) -> Figure:
    """Return an empty figure; heights are given for text of the size on the screen."""
    size = (width, height * layout.font / SCREEN.font)
    return Figure(figsize=size, layout="constrained")


def _panel_limits(summary: pd.DataFrame, floors: pd.DataFrame) -> list[tuple[float, float]]:
    """Return the limits of the panels of ratios: all, and near 1 when others are far from it."""
    limits = ratio_limits(summary, floors)
    if limits[1] <= 8:
        return [limits]
    near = summary[summary["ratio_mean"] <= 2]
    return [limits, (ratio_limits(near, floors)[0], 2.2)]
