"""Many runs in one figure: a row of panels for each, before the lines of the others in grey."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evalkit.figures.drawing import curve
from evalkit.figures.layouts import SCREEN, Layout
from evalkit.figures.palette import QUIET, Style, run_styles
from evalkit.figures.plots import PROGRESS, scale_by_run
from evalkit.results.spreads import spread

_ROW = 1.05  # inches of a row of panels
_NAME = 16  # letters of a line of a run's name
Drawing = tuple[str, pd.DataFrame, str, bool]
"""What a column of panels shows: its title, a table with columns run and progress, the column of
the table without its ending, and whether its axis is logarithmic, else in percent."""


def facet_figure(drawings: Sequence[Drawing], names: Sequence[str], layout: Layout) -> Figure:
    """Return a figure with a row of panels per run and a column per quantity.

    Args:
        drawings: the columns.
        names: of the runs.
        layout: its sizes.
    """
    height = (_ROW * len(names) + 0.8) * layout.font / SCREEN.font
    figure = Figure(figsize=(layout.two_columns, height), layout="constrained")
    grid = figure.subplots(len(names), len(drawings), sharex=True, sharey="col", squeeze=False)
    style = next(iter(run_styles(names).values()))
    for panels, name in zip(grid, names, strict=True):
        for ax, (_, table, column, log) in zip(panels, drawings, strict=True):
            plot_among(table, column, ax, name, style, log)
        label = textwrap.fill(name, _NAME, break_long_words=True)
        panels[0].set_ylabel(label, rotation=0, ha="right", va="center", parse_math=False)
    for ax, (title, *_) in zip(grid[0], drawings, strict=True):
        ax.set_title(textwrap.fill(title, 20), parse_math=False)
    figure.align_ylabels(grid[:, 0])
    figure.supxlabel(PROGRESS, fontsize=1.05 * layout.font)
    return figure


def plot_among(
    table: pd.DataFrame, column: str, ax: Axes, name: str, style: Style, log: bool = True
) -> Axes:
    """Draw one column of a run against progress, before the means of all other runs in grey.

    Args:
        table: with columns run, progress, and the column's mean and sigma.
        column: its name without ``_mean``.
        ax: where to draw.
        name: of the run.
        style: of its line.
        log: whether the axis is logarithmic, else in percent.
    """
    scale_by_run(ax, table, column, log)
    thin: dict[str, Any] = {"color": QUIET, "alpha": 0.5, "linewidth": rcParams["font.size"] / 18}
    for run, rows in table.groupby("run", sort=False):
        if str(run) == name:
            curve(ax, rows["progress"], spread(rows, column), style)
        else:
            ax.plot(rows["progress"], rows[f"{column}_mean"], **thin, zorder=1)
    ax.set(xlim=(-0.02, 1.02))
    return ax
