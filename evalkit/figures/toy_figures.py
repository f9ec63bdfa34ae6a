"""The picture of a toy problem: a panel per method with landscape, field and trajectories."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from evalkit.figures.drawing import line_style
from evalkit.figures.layouts import SCREEN, Layout
from evalkit.figures.palette import FLOOR, Style, method_styles
from evalkit.figures.run_figures import save_figures, settled
from evalkit.names import display_name
from evalkit.toy_tables import Toy

_SMALLEST = 1e-3
"""The lowest contour, as a share of the largest loss."""
_LANDSCAPE = LinearSegmentedColormap.from_list("landscape", ["#ffffff", "#cecece"])


def plot_landscape(landscape: pd.DataFrame, ax: Axes) -> QuadContourSet:
    """Shade the loss, lighter where it is smaller, and draw its contours at 1, 2, 5, 10, ...

    Args:
        landscape: columns weight, bias, loss on a full grid.
        ax: where to draw.
    """
    grid = landscape.pivot(index="bias", columns="weight", values="loss")
    levels = _round_levels(float(grid.min(axis=None)), float(grid.max(axis=None)))
    colors = _LANDSCAPE(np.linspace(0, 1, len(levels) + 1))
    place: Any = (grid.columns, grid.index, grid.to_numpy(), levels)
    filled = ax.contourf(*place, colors=colors, extend="both", zorder=0)
    ax.contour(*place, colors="#a3a3a3", linewidths=rcParams["font.size"] / 18, zorder=1)
    ax.set(xlim=grid.columns[[0, -1]], ylim=grid.index[[0, -1]], aspect="equal")
    ax.locator_params(nbins=4)
    return filled


def _round_levels(smallest: float, largest: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten between the smallest and the largest loss."""
    start = max(smallest, _SMALLEST * largest)
    powers = range(math.floor(math.log10(start)), math.ceil(math.log10(largest)) + 1)
    levels = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    return [level for level in levels if start < level < largest]


def plot_field(field: pd.DataFrame, ax: Axes, style: Style) -> Axes:
    """Draw -d at every point as an arrow; all arrows have one length, since d has no scale.

    Args:
        field: columns weight, bias, direction_weight, direction_bias, of one method.
        ax: where to draw.
        style: the method's.
    """
    places = field[["weight", "bias"]].to_numpy(float)
    arrows = -field[["direction_weight", "direction_bias"]].to_numpy(float)
    arrows /= np.linalg.norm(arrows, axis=1, keepdims=True)
    spacing = np.diff(np.unique(places[:, 0])).min()
    ax.quiver(
        *places.T,
        *arrows.T,
        color=style.color,
        alpha=0.5,
        pivot="mid",
        angles="xy",
        scale_units="xy",
        scale=1 / (0.7 * spacing),
        units="dots",
        width=rcParams["font.size"] * rcParams["figure.dpi"] / 72 / 9,
        headwidth=4,
        headlength=4.5,
        headaxislength=4,
        zorder=2,
    )
    return ax


def plot_trajectories(trajectories: pd.DataFrame, ax: Axes, style: Style) -> Axes:
    """Draw a line per start, a ring where it starts, a dot where it ends inside the axes.

    Args:
        trajectories: columns start, step, weight, bias, of one method.
        ax: where to draw.
        style: the method's.
    """
    size = rcParams["lines.markersize"]
    ring: dict[str, Any] = {"marker": "o", "markersize": 0.9 * size, "markerfacecolor": "white"}
    for _, rows in trajectories.groupby("start"):
        x, y = (rows[column].to_numpy(float) for column in ("weight", "bias"))
        ax.plot(x, y, color=style.color, zorder=3)
        ax.plot(x[:1], y[:1], color=style.color, zorder=4, **ring)
        if _inside(ax, x[-1], y[-1]):
            ax.plot(x[-1:], y[-1:], color=style.color, marker="o", markersize=0.8 * size, zorder=4)
    return ax


def _inside(ax: Axes, x: float, y: float) -> bool:
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    return bool(left <= x <= right and bottom <= y <= top)


def plot_sample_minima(inputs: Sequence[float], targets: Sequence[float], ax: Axes) -> Axes:
    """Draw the line w x + b = y of each sample: where its own squared error is smallest.

    Args:
        inputs: x of each sample.
        targets: y of each sample.
        ax: where to draw.
    """
    for x, y in zip(inputs, targets, strict=True):
        ax.axline((0, y), slope=-x, **line_style(FLOOR), zorder=1.5)
    return ax


def toy_figure(toy: Toy, layout: Layout = SCREEN) -> Figure:
    """Return a panel per method: contours of the loss, arrows of the update, trajectories.

    Args:
        toy: its tables.
        layout: its sizes.
    """
    methods = list(dict.fromkeys(toy.field["method"]))
    with matplotlib.rc_context(layout.settings() | {"axes.grid": False}):
        rows = math.ceil(len(methods) / 2)
        height = (2.72 * rows + 0.85) * layout.one_column / SCREEN.one_column
        figure = Figure(figsize=(layout.one_column, height), layout="constrained")
        grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
        for method, ax in zip(methods, grid.flat, strict=False):
            filled = _plot_method(toy, method, ax)
        for ax in grid[-1]:
            ax.set_xlabel("Weight $w$")
        for ax in grid[:, 0]:
            ax.set_ylabel("Bias $b$")
        figure.colorbar(
            filled,
            ax=grid,
            location="bottom",
            shrink=0.9,
            aspect=50,
            pad=0.02,
            format="%g",
            label="Loss $L$",
        )
        return settled(figure)


def _plot_method(toy: Toy, method: str, ax: Axes) -> QuadContourSet:
    """Draw the panel of one method, with its median efficiency over the field."""
    style = method_styles(toy.field["method"])[method]
    field = toy.field[toy.field["method"] == method]
    filled = plot_landscape(toy.landscape, ax)
    if toy.provenance["likelihood"] == "gaussian":
        plot_sample_minima(toy.provenance["inputs"], toy.provenance["targets"], ax)
    plot_field(field, ax, style)
    plot_trajectories(toy.trajectories[toy.trajectories["method"] == method], ax, style)
    median = field["efficiency"].median()
    ax.set_title(f"{display_name(method)} (efficiency {median:.1%})", parse_math=False)
    return filled


def write_toy_figure(
    toy: Toy, folder: str | os.PathLike[str], layout: Layout = SCREEN
) -> list[Path]:
    """Write the figure under the problem's name in every format of the layout.

    Raises:
        EvalkitError: the folder cannot be written.
    """
    return save_figures({toy.provenance["problem"]: toy_figure(toy, layout)}, folder, layout)
