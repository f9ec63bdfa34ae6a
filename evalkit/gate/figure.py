"""A picture of the differences between a run and its baseline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from evalkit.figures import save_figures
from evalkit.figures.drawing import label_ends, last_value, line_style
from evalkit.figures.layouts import SCREEN
from evalkit.figures.palette import Style, method_styles
from evalkit.gate.comparison import FAILURES, METRICS, Check
from evalkit.names import display_name
from evalkit.results.intervals import EFFICIENCY, Metric

_BAND = Style("#8c8c8c", "", (1, 1.2))
_FAILED = "#d00000"


def plot_differences(table: pd.DataFrame, ax: Axes, metric: Metric, tolerance: float) -> Axes:
    """Draw obtained - expected with intervals against checkpoints: a line per method and damping.

    The axis is linear within the tolerance, which is shaded, and logarithmic beyond. Rings mark
    what fails the gate.

    Args:
        table: the table of ``comparison.Check.table``, checkpoints in order.
        ax: where to draw.
        metric: which differences.
        tolerance: the tolerance of the gate.
    """
    rows = table[(table["metric"] == metric.name) & table["difference"].notna()]
    names = list(dict.fromkeys(table["checkpoint"]))
    finite = rows[["difference", "low", "high"]].to_numpy(float)
    reach = np.abs(finite[np.isfinite(finite)]).max(initial=0)
    limit = 1.3 * max(reach, 2 * tolerance, 1e-3)
    ax.set_yscale("symlog", linthresh=max(2 * tolerance, 1e-3))
    ax.set(xlim=(-0.5, max(len(names), 1) - 0.5), ylim=(-limit, limit))
    percent = metric.name == EFFICIENCY.name
    scale, unit = (100, "%") if percent else (1, "")
    ax.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{scale * value:+g}{unit}" if value else "0")
    )
    ax.axhspan(-tolerance, tolerance, color=_BAND.color, alpha=0.16, linewidth=0, zorder=1)
    ax.axhline(0, **line_style(_BAND), zorder=1)
    styles, ends = method_styles(table["method"]), []
    groups = list(_lines(rows))
    for number, (name, method, values) in enumerate(groups):
        shift = 0.5 * (number + 0.5) / len(groups) - 0.25
        x = values["checkpoint"].map(names.index).to_numpy(float) + shift
        _draw(ax, x, values, styles[method])
        ends.append((name, last_value(values["difference"]), styles[method]))
    label_ends(ax, ends)
    better = "higher" if metric.higher_is_better else "lower"
    ax.set_ylabel(f"Change of {metric.name}\n({better} is better)")
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", parse_math=False)
    return ax


def _lines(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield name, method and rows of each line."""
    several = rows["damping"].nunique() > 1
    for (method, damping), values in rows.groupby(["method", "damping"], sort=False, dropna=False):
        name = display_name(str(method))
        yield f"{name} {damping:g}" if several else name, str(method), values


def _draw(ax: Axes, x: np.ndarray, values: pd.DataFrame, style: Style) -> None:
    """Draw one line; what is infinite stands at the edge of the axes."""
    low, high = ax.get_ylim()
    y, starts, ends = (
        np.clip(values[column].to_numpy(float), low, high)
        for column in ("difference", "low", "high")
    )
    look: dict[str, Any] = {**line_style(style), "marker": style.marker, "markeredgewidth": 0}
    ax.plot(x, y, clip_on=False, zorder=3, **look)
    ax.vlines(x, starts, ends, colors=style.color, alpha=0.55, zorder=2)
    failed = values["verdict"].isin(FAILURES).to_numpy()
    if failed.any():  # an empty line would count in the layout
        ring: dict[str, Any] = {"marker": "o", "markerfacecolor": "none"}
        ring["markersize"] = 2 * matplotlib.rcParams["lines.markersize"]
        ax.plot(x[failed], y[failed], linestyle="", color=_FAILED, clip_on=False, zorder=4, **ring)


def differences_figure(check: Check) -> Figure:
    """Return the differences of every metric, one panel above the other."""
    table = check.table
    order = {name: place for place, name in enumerate(check.checkpoints)}
    table = table[table["checkpoint"].isin(order)]
    table = table.sort_values(
        ["checkpoint", "method", "damping"],
        key=lambda column: column.map(order) if column.name == "checkpoint" else column,
        kind="stable",
    )
    with matplotlib.rc_context(SCREEN.settings()):
        figure = Figure(figsize=(SCREEN.one_column, 4.6), layout="constrained")
        panels = figure.subplots(len(METRICS), sharex=True)
        for ax, metric in zip(panels, METRICS, strict=True):
            plot_differences(table, ax, metric, check.tolerance)
        figure.align_ylabels(panels)
    return figure


def write_differences(check: Check, path: Path) -> list[Path]:
    """Write the figure as PNG and SVG and return the files.

    Args:
        check: what a gate found.
        path: where, with or without an ending; its folder is made when missing.

    Raises:
        EvalkitError: the files cannot be written.
    """
    name = path.stem if path.suffix[1:] in SCREEN.formats else path.name
    return save_figures({name: differences_figure(check)}, path.parent, SCREEN)
