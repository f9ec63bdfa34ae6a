"""Figures of several panels, in the layout of the paper's: one run, or a line per run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evalkit.figures.drawing import label_lines, line_style
from evalkit.figures.facets import Drawing, facet_figure
from evalkit.figures.groups import Group, groups_of
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
from evalkit.names import MANY, display_name
from evalkit.results.pairs import Pair, compare_runs, named
from evalkit.results.summaries import near_zero, stages, summarize, summarize_batches
from evalkit.storage.run_folder import Run

_LABELS = (RATIO, "The same, near 1")
_HEIGHTS = {1: [2.8], 2: [2.3, 2.1]}  # inches of the panels of ratios, by their number
_FAR = 8  # from which on ratios near 1 are squeezed
_ROW = 2.3  # of a row of panels
_LONG = 32  # more letters than fit beside a panel


def ratio_figure(run: Run, layout: Layout = SCREEN) -> Figure:
    """Return ratios above imbalance; ratios near 1 get a panel of their own when others are far.

    Many methods are drawn in a panel for each family.
    """
    summary, floors = near_zero(summarize(run)), summarize_batches(run)
    groups = groups_of(summary["method"])
    panels = _ratio_panels(summary, floors, groups)
    if len(groups) > 1:
        figure, axes = _grid(len(panels) + 1, 2, max(panel.height for panel in panels), layout)
        figure.supxlabel(PROGRESS, fontsize=1.05 * layout.font)
    else:
        heights = [*(panel.height for panel in panels), 1.6]
        figure = _figure(layout.one_column, sum(heights) + 0.5, layout)
        axes = list(figure.subplots(len(heights), sharex=True, height_ratios=heights))
    for ax, panel in zip(axes, panels, strict=False):
        plot_ratio(summary, floors, ax, panel.limits, panel.group).set_ylabel(panel.label)
        ax.set_title(panel.title, loc="left")
    plot_imbalance(floors, axes[-1])
    if len(groups) > 1:
        axes[-1].set_xlabel("")
        axes[-1].set_title("gradient norms", loc="left")
        for ax in axes[1:-1:2]:
            ax.set_ylabel("")
    figure.align_ylabels(axes)
    return figure


def efficiency_figure(run: Run, layout: Layout = SCREEN) -> Figure:
    """Return efficiency against progress; of many methods in a panel for each family."""
    summary = near_zero(summarize(run))
    groups = groups_of(summary["method"])
    if len(groups) == 1:
        figure = _figure(layout.one_column, max(3.2, _room(groups[0])), layout)
        plot_efficiency(summary, figure.subplots())
        return figure
    figure, axes = _grid(len(groups), 2, max(2.3, *map(_room, groups)), layout)
    for place, (ax, group) in enumerate(zip(axes, groups, strict=True)):
        plot_efficiency(summary, ax, group).set_xlabel("")
        ax.set_title(group.title, loc="left")
        if place % 2:
            ax.set_ylabel("")
    figure.supxlabel(PROGRESS, fontsize=1.05 * layout.font)
    return figure


def damping_figure(run: Run, layout: Layout = SCREEN) -> Figure:
    """Return ratio against damping at the start, middle and end of training (paper's E3).

    Many methods are drawn in a row of panels for each family.
    """
    summary, floors = summarize(run), summarize_batches(run).set_index("checkpoint")
    chosen = stages(summary)
    shown = summary[summary["checkpoint"].isin(chosen.values())]
    rows = _ratio_panels(shown, floors.loc[list(chosen.values())], groups_of(summary["method"]))
    heights = [panel.height for panel in rows]
    if len(rows) == 1:
        heights = [max(2.8, heights[0])]
    figure = _figure(layout.two_columns, sum(heights) + 0.7, layout)
    grid = figure.subplots(
        len(heights), len(chosen), sharex="col", sharey="row", squeeze=False, height_ratios=heights
    )
    for panels, row in zip(grid, rows, strict=True):
        panels[0].set_ylabel(f"{row.title}\n{row.label}" if row.title else row.label)
        for ax, checkpoint in zip(panels, chosen.values(), strict=True):
            here = summary[summary["checkpoint"] == checkpoint]
            floor = float(floors["floor_ratio_mean"].loc[checkpoint])
            plot_damping(here, floor, ax, row.limits, ax is panels[-1], row.group)
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
    """Return a panel per pair of methods and one of imbalance, a line per run (paper's E1).

    Many runs have a row of panels each.
    """
    table = compare_runs(runs, pairs)
    drawings: list[Drawing] = [
        (f"Ratio {pair.label}", table[table["pair"] == pair.label], "ratio", True) for pair in pairs
    ]
    batches = _by_run(runs, summarize_batches)
    drawings.append(("Imbalance", batches, "imbalance", True))
    return _panels(drawings, list(named(runs)), layout)


def efficiency_of_runs_figure(
    runs: Sequence[Run], methods: Sequence[str], layout: Layout = SCREEN
) -> Figure:
    """Return efficiency against progress: a panel per method, a line per run.

    Many runs have a row of panels each.
    """
    table = _by_run(runs, lambda run: near_zero(summarize(run)))
    drawings = [
        (f"Efficiency of {display_name(method)}", table[table["method"] == method], "efficiency")
        for method in methods
    ]
    return _panels([(*drawing, False) for drawing in drawings], list(named(runs)), layout)


def _by_run(runs: Sequence[Run], table: Callable[[Run], pd.DataFrame]) -> pd.DataFrame:
    tables = [table(run).assign(run=name) for name, run in named(runs).items()]
    return pd.concat(tables, ignore_index=True)


def _panels(drawings: Sequence[Drawing], names: Sequence[str], layout: Layout) -> Figure:
    """Return panels in rows of three, the names of the runs above; of many runs a row for each."""
    if len(names) > MANY:
        return facet_figure(drawings, names, layout)
    figure, grid = _grid(len(drawings), min(3, len(drawings)), 2.5, layout)
    styles = run_styles(names)
    for ax, (label, table, column, log) in zip(grid, drawings, strict=True):
        plot_by_run(table, column, ax, styles, log).set_ylabel(_folded(label))
    figure.supxlabel(PROGRESS, fontsize=1.05 * layout.font)
    if len(names) > 1:
        handles = [
            Line2D([], [], **line_style(styles[name]), marker=styles[name].marker) for name in names
        ]
        figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _grid(count: int, columns: int, height: float, layout: Layout) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels in rows, all over the same x axis.

    Args:
        count: of the panels.
        columns: in a row.
        height: of a row, in inches on the screen.
        layout: its sizes.
    """
    rows = math.ceil(count / columns)
    width = layout.two_columns if columns > 1 else layout.one_column
    figure = _figure(width, height * rows + 0.6, layout)
    axes = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_visible(False)
    for ax in axes[max(0, count - columns) : count]:
        ax.tick_params(labelbottom=True)
    return figure, axes[:count]


def _figure(width: float, height: float, layout: Layout) -> Figure:
    """Return an empty figure; heights are given for text of the size on the screen."""
    size = (width, height * layout.font / SCREEN.font)
    return Figure(figsize=size, layout="constrained")


@dataclass(frozen=True)
class _Panel:
    """A panel of ratios.

    Attributes:
        group: its methods.
        limits: those of its log axis.
        title: above it.
        label: beside it.
        height: in inches on the screen.
    """

    group: Group
    limits: tuple[float, float]
    title: str
    label: str
    height: float


def _ratio_panels(
    summary: pd.DataFrame, floors: pd.DataFrame, groups: Sequence[Group]
) -> list[_Panel]:
    """Return the panels of ratios: of each group all, and near 1 when others are far from it."""
    panels = []
    for group in groups:
        rows = summary[summary["method"].isin(group.shown)]
        limits = _panel_limits(rows, floors)
        if len(groups) == 1:
            heights = _HEIGHTS[len(limits)]
            panels += [
                _Panel(group, limit, "", label, max(height, _room(group)))
                for limit, label, height in zip(limits, _LABELS, heights, strict=False)
            ]
            continue
        if not _is_far(rows):
            limits = limits[:1]
        titles = (group.title, f"{group.title}, near 1")
        panels += [
            _Panel(group, limit, title, RATIO, max(_ROW, _room(group)))
            for limit, title in zip(limits, titles, strict=False)
        ]
    return panels


def _is_far(rows: pd.DataFrame) -> bool:
    """Whether a mean lies far from 1, and not a bar alone; an infinite one is at the edge."""
    means = rows["ratio_mean"].to_numpy(float)
    return bool((means[np.isfinite(means)] > _FAR).any())


def _room(group: Group) -> float:
    """Return the height of a panel in which the names at the ends of lines find room."""
    names = [*map(display_name, group.shown), "floor"]
    return 1.2 * label_lines(names) * SCREEN.font / 72


def _panel_limits(summary: pd.DataFrame, floors: pd.DataFrame) -> list[tuple[float, float]]:
    """Return the limits of the panels of ratios: all, and near 1 when others are far from it."""
    limits = ratio_limits(summary, floors)
    if limits[1] <= _FAR:
        return [limits]
    near = summary[summary["ratio_mean"] <= 2]
    return [limits, (ratio_limits(near, floors)[0], 2.2)]


def _folded(label: str) -> str:
    """Return the label of an axis, a long pair of methods on two lines."""
    return label.replace(" / ", " /\n") if len(label) > _LONG else label
