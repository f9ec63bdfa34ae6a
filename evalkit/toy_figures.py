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

from evalkit.drawing import line_style
from evalkit.figures import save_figures, settled
from evalkit.layouts import SCREEN, Layout
from evalkit.palette import FLOOR, Style, method_styles
from evalkit.results import display_name
from evalkit.toy_tables import Toy

_LEVELS = 14
_LANDSCAPE = LinearSegmentedColormap.from_list("landscape", ["#ffffff", "#c9c9c9"])


def plot_landscape(landscape: pd.DataFrame, ax: Axes) -> QuadContourSet:
    """Shade the loss, from white at the smallest, and draw its contours.

    Contours are equally spaced in the root of the loss, so that a quadratic's are equally far
    apart.

    Args:
        landscape: columns weight, bias, loss on a full grid.
        ax: where to draw.
    """
    grid = landscape.pivot(index="bias", columns="weight", values="loss")
    roots = np.sqrt([grid.to_numpy().min(), grid.to_numpy().max()])
    levels = np.linspace(*roots, _LEVELS) ** 2
    place: Any = (grid.columns, grid.index, grid.to_numpy(), levels)
    filled = ax.contourf(*place, cmap=_LANDSCAPE, zorder=0)
    ax.contour(*place, colors="#ababab", linewidths=rcParams["font.size"] / 18, zorder=1)
    ax.set(xlim=grid.columns[[0, -1]], ylim=grid.index[[0, -1]], aspect="equal")
    return filled


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
    """Draw a line per start, a ring where it starts and the method's marker where it ends.

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
        inside = _inside(ax, x[-1], y[-1])
        if inside:
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
    styles = method_styles(methods)
    with matplotlib.rc_context(layout.settings() | {"axes.grid": False}):
        rows = math.ceil(len(methods) / 2)
        height = (2.75 * rows + 0.3) * layout.one_column / SCREEN.one_column
        figure = Figure(figsize=(layout.one_column, height), layout="constrained")
        grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
        for method, ax in zip(methods, grid.flat, strict=False):
            filled = plot_landscape(toy.landscape, ax)
            if toy.provenance["likelihood"] == "gaussian":
                plot_sample_minima(toy.provenance["inputs"], toy.provenance["targets"], ax)
            field = toy.field[toy.field["method"] == method]
            plot_field(field, ax, styles[method])
            own = toy.trajectories[toy.trajectories["method"] == method]
            plot_trajectories(own, ax, styles[method])
            ax.set_title(
                f"{display_name(method)} (efficiency {field['efficiency'].median():.0%})",
                parse_math=False,
            )
        for ax in grid[-1]:
            ax.set_xlabel("Weight $w$")
        for ax in grid[:, 0]:
            ax.set_ylabel("Bias $b$")
        bar = figure.colorbar(filled, ax=grid, shrink=0.6, format="%.3g", label="Loss $L$")
        bar.outline.set_visible(False)
        return settled(figure)


def write_toy_figure(
    toy: Toy, folder: str | os.PathLike[str], layout: Layout = SCREEN
) -> list[Path]:
    """Write the figure under the problem's name in every format of the layout.

    Raises:
        EvalkitError: the folder cannot be written.
    """
    return save_figures({toy.provenance["problem"]: toy_figure(toy, layout)}, folder, layout)
