"""A run on one slide: what was found, the ratios during training, and the table of them."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evalkit.counts import counted
from evalkit.figures.drawing import line_style
from evalkit.figures.groups import Group
from evalkit.figures.layouts import SLIDE
from evalkit.figures.palette import Style, method_styles
from evalkit.figures.plots import PROGRESS, plot_ratio, ratio_limits
from evalkit.names import MANY, by_family, display_name
from evalkit.results.marks import Marks
from evalkit.results.spreads import format_number, format_percent
from evalkit.results.summaries import (
    headline,
    near_zero,
    shown_marks,
    stages,
    summarize,
    summarize_batches,
)
from evalkit.storage.run_folder import Run

MOST_ROWS = 16
"""Methods that a slide has room for; of more, the best and the last."""
_ACROSS = 118
"""Letters of a line of what was found."""
_NAME = 16
"""Letters of a name beside the numbers; longer ones are smaller."""
_GREY = "#5c5c5c"
_RULE = "#d9d9d9"


def slide_figure(run: Run) -> Figure:
    """Return a slide of a run, 16:9: its headline, a plot of ratios to SGD and a table of them.

    The plot shows the methods of :func:`drawn_methods`, the table all that have room, the best at
    the end first.
    """
    with matplotlib.rc_context(SLIDE.settings()):
        summary, floors = near_zero(summarize(run)), summarize_batches(run)
        figure = Figure(figsize=(SLIDE.one_column, SLIDE.one_column * 9 / 16))
        said = textwrap.fill(headline(run), _ACROSS).split("\n")
        top = 0.905 - 0.036 * len(said)
        task = str(run.provenance.get("task") or run.folder.resolve().name)
        place: dict[str, Any] = {"ha": "left", "va": "top", "parse_math": False}
        figure.text(0.03, 0.965, task, fontsize=1.5 * SLIDE.font, weight="bold", **place)
        figure.text(0.03, 0.905, "\n".join(said), linespacing=1.3, **place)
        figure.text(0.03, 0.02, _footnote(run, floors), fontsize=0.75 * SLIDE.font, color=_GREY)
        _plot(figure.add_axes((0.07, 0.15, 0.29, top - 0.2)), summary, floors)
        table = figure.add_axes((0.555, 0.08, 0.41, top - 0.1))
        _tabulate(table, summary, shown_marks(run))
        return figure


def drawn_methods(summary: pd.DataFrame) -> tuple[str, ...]:
    """Return the methods that a slide draws: all, of many the best of each family and the worst.

    Args:
        summary: the result of ``results.summarize``, one damping per method.
    """
    methods = _ordered(summary)
    if len(methods) <= MANY:
        return tuple(methods)
    # The first of a family is its best.
    chosen = [members[0] for members in by_family(methods).values()]
    return tuple(method for method in methods if method in {*chosen, "sgd", methods[-1]})


def _ordered(summary: pd.DataFrame) -> list[str]:
    """Return the methods by their ratio at the last checkpoint, the best first."""
    last = summary.sort_values("step", kind="stable").drop_duplicates("method", keep="last")
    return list(map(str, last.sort_values("ratio_mean", kind="stable")["method"]))


def _plot(ax: Axes, summary: pd.DataFrame, floors: pd.DataFrame) -> None:
    drawn = drawn_methods(summary)
    rows = summary[summary["method"].isin(drawn)]
    plot_ratio(summary, floors, ax, ratio_limits(rows, floors), Group("", drawn))
    ax.set_xlabel(PROGRESS)
    if len(drawn) < summary["method"].nunique():
        ax.set_title("the best of each family at the end, and the worst", loc="left")


def _footnote(run: Run, floors: pd.DataFrame) -> str:
    batches, samples = int(floors["batches"].max()), int(floors["num_samples"].min())
    damping = near_zero(run.scores)["damping"].min()
    return (
        "gamma relative to SGD's, smaller is better; efficiency: floor / gamma. Geometric means "
        f"over batches (at most {batches}) of {counted(samples, 'sample')}; damping {damping:g}."
    )


def _tabulate(ax: Axes, summary: pd.DataFrame, marks: Marks) -> None:
    """Write the ratio of each method at the stages of training, and its efficiency at the end."""
    chosen, ordered = stages(summary), _ordered(summary)
    shown = ordered
    if len(ordered) > MOST_ROWS:
        shown = [*ordered[: MOST_ROWS - 2], "", ordered[-1]]
    styles, drawn = method_styles(summary["method"]), drawn_methods(summary)
    columns = [*(0.78 - 0.145 * place for place in reversed(range(len(chosen)))), 1.0]
    lines = MOST_ROWS + 1 if len(ordered) > MANY else MANY + 2
    height = 1 / (lines + 1)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_axis_off()
    y = 1 - height
    for x, name in zip([0.1, *columns], ["method", *chosen, "efficiency"], strict=True):
        ax.text(x, y, name, ha="right" if x > 0.1 else "left", va="center", weight="bold")
    cells = {(row["method"], row["checkpoint"]): row for row in summary.to_dict("records")}
    for method in shown:
        ax.axhline(y - height / 2, color=_RULE, linewidth=SLIDE.font / 14)
        y -= height
        if not method:
            more = f"{len(ordered) - len(shown) + 1} more"
            ax.text(0.1, y, more, va="center", color=_GREY)
            continue
        if method in drawn:
            _swatch(ax, y, styles[method])
        _name(ax, y, display_name(method))
        rows = [cells.get((method, name)) for name in chosen.values()]
        for x, row in zip(columns, rows, strict=False):
            if row is not None:
                ax.text(x, y, format_number(row["ratio_mean"]), ha="right", va="center")
                if sign := marks.sign(row["checkpoint"], method, row["damping"]):
                    ax.text(x, y, sign, ha="left", va="center")
        if rows[-1] is not None:
            efficiency = format_percent(rows[-1]["efficiency_mean"])
            ax.text(columns[-1], y, efficiency, ha="right", va="center")


def _swatch(ax: Axes, y: float, style: Style) -> None:
    ax.plot([0, 0.035, 0.07], [y] * 3, **line_style(style), marker=style.marker, markevery=[1])


def _name(ax: Axes, y: float, name: str) -> None:
    size = SLIDE.font * max(0.6, min(1, _NAME / len(name)))
    folded = textwrap.fill(name, int(_NAME / 0.6))
    ax.text(0.1, y, folded, va="center", fontsize=size, parse_math=False)
