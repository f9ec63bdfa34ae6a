"""Interactive charts from the tables of a run, for its page: what each shows, and of what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from bokeh.models import FixedTicker, NumeralTickFormatter, Range1d
from bokeh.plotting import figure

from evalkit.figures.palette import FLOOR, IMBALANCE, Style, method_styles
from evalkit.page.bokeh_figures import (
    Curve,
    Stops,
    draw_curves,
    empty_figure,
    shade_floor,
)
from evalkit.results import (
    display_name,
    near_zero,
    stages,
    summarize,
    summarize_batches,
)
from evalkit.run import Run
from evalkit.spreads import spread
from evalkit.sweeps import damping_places, is_sweep

_PROGRESS = "Training progress (0 = initialised, 1 = end)"
_RATIO = "Ratio to SGD"


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        name: ratio, imbalance, efficiency, or damping-STAGE.
        figure: what Bokeh draws.
        title: what tells it from its neighbours; may be empty.
    """

    name: str
    figure: figure
    title: str = ""


@dataclass(frozen=True)
class Key:
    """What tells a curve: a tag to switch it by, its name, its style."""

    tag: str
    name: str
    style: Style


def draw_charts(run: Run) -> list[Chart]:
    """Return every chart of a run: over progress at near-zero damping, and for a sweep by stage."""
    summary, floors = summarize(run), summarize_batches(run)
    methods = run_methods(run)
    charts = progress_charts(near_zero(summary), floors, methods)
    if is_sweep(run):
        charts += damping_charts(summary, floors, methods)
    return charts


def run_methods(run: Run) -> tuple[str, ...]:
    """Return the methods of a run in the order of its table."""
    return tuple(str(method) for method in run.scores["method"].unique())


def progress_charts(
    shown: pd.DataFrame, floors: pd.DataFrame, methods: Sequence[str]
) -> list[Chart]:
    """Return ratio, efficiency and imbalance against progress, zooming together along x.

    Args:
        shown: of ``results.summarize``, one damping per method.
        floors: of ``results.summarize_batches``.
        methods: of the run, in the order that tags and spare styles are given.
    """
    progress = floors["progress"].to_numpy(float)
    names = {
        "checkpoint": tuple(floors["checkpoint"]),
        "progress": tuple(f"{value:.2f}" for value in progress),
    }
    stops = Stops(names["checkpoint"], progress, names)
    span, axis = Range1d(-0.02, 1.02), ("progress", "checkpoint")

    ratio = empty_figure((_PROGRESS, _RATIO), 380, span, y_axis_type="log")
    floor = _curve("floor", ("floor", FLOOR), floors, "floor_ratio", axis)
    shade_floor(ratio, floor)
    draw_curves(ratio, stops, [*_method_curves(shown, "ratio", axis, methods), floor])

    efficiency = empty_figure((_PROGRESS, "Efficiency"), 320, span)
    efficiency.y_range = Range1d(-0.03, 1.03)
    efficiency.yaxis.formatter = NumeralTickFormatter(format="0%")
    draw_curves(efficiency, stops, _method_curves(shown, "efficiency", axis, methods))

    imbalance = empty_figure((_PROGRESS, "Imbalance"), 260, span, y_axis_type="log")
    kinds = [_curve(tag, named, floors, tag, axis) for tag, named in IMBALANCE.items()]
    draw_curves(imbalance, stops, kinds)
    return [
        Chart("ratio", ratio),
        Chart("efficiency", efficiency),
        Chart("imbalance", imbalance),
    ]


def damping_charts(
    summary: pd.DataFrame, floors: pd.DataFrame, methods: Sequence[str]
) -> list[Chart]:
    """Return ratio against damping, a chart per stage of training, all on the same axes.

    Args:
        summary: of ``results.summarize``.
        floors: of ``results.summarize_batches``.
        methods: of the run, in the order that tags and spare styles are given.
    """
    places = damping_places(summary["damping"])
    x = np.array(list(places.values()))
    labels = {place: f"{damping:g}" for damping, place in places.items()}
    stops = Stops(tuple(places), x, {"damping": tuple(labels.values())})
    span = Range1d(float(x[0]) / 3, float(x[-1]) * 3)
    placed = summary.assign(place=summary["damping"].map(places))
    charts: list[Chart] = []
    for stage, checkpoint in stages(summary).items():
        chart = empty_figure(("Damping", _RATIO), 330, span, x_axis_type="log", y_axis_type="log")
        if charts:
            chart.y_range = charts[0].figure.y_range
        chart.xaxis.ticker = FixedTicker(ticks=x[:: math.ceil(len(x) / 5)].tolist())
        chart.xaxis.major_label_overrides = labels
        here = floors[floors["checkpoint"] == checkpoint]
        floor = here.loc[here.index.repeat(len(x))].assign(place=x, damping=list(places))
        curve = _curve("floor", ("floor", FLOOR), floor, "floor_ratio", ("place", "damping"))
        shade_floor(chart, curve)
        rows = placed[placed["checkpoint"] == checkpoint].sort_values("damping", kind="stable")
        curves = _method_curves(rows, "ratio", ("place", "damping"), methods)
        draw_curves(chart, stops, [*curves, curve])
        charts.append(Chart(f"damping-{stage}", chart, f"{stage}: {checkpoint}"))
    return charts


def method_keys(methods: Sequence[str]) -> list[Key]:
    """Return the key of the curves of a run's methods, and of the floor."""
    styles, tags = method_styles(methods), _tags(methods)
    keys = [Key(tags[method], display_name(method), styles[method]) for method in methods]
    return [*keys, Key("floor", "floor", FLOOR)]


def imbalance_keys() -> list[Key]:
    """Return the key of the curves of imbalance."""
    return [Key(tag, *named) for tag, named in IMBALANCE.items()]


def _tags(methods: Sequence[str]) -> dict[str, str]:
    """Return a tag per method, safe in HTML and in Bokeh's templates."""
    return {method: f"method{place}" for place, method in enumerate(methods)}


def _method_curves(
    rows: pd.DataFrame, column: str, axis: tuple[str, str], methods: Sequence[str]
) -> list[Curve]:
    """Return a curve per method that has rows."""
    styles, tags = method_styles(methods), _tags(methods)
    curves = []
    for method in methods:
        group = rows[rows["method"] == method]
        if len(group):
            named = (display_name(method), styles[method])
            curves.append(_curve(tags[method], named, group, column, axis))
    return curves


def _curve(
    tag: str, named: tuple[str, Style], rows: pd.DataFrame, column: str, axis: tuple[str, str]
) -> Curve:
    """Return mean and one sigma of a column as a curve.

    Args:
        tag: of the curve.
        named: its name and style.
        rows: a point each.
        column: of ``rows``, less its ending.
        axis: the columns of ``rows`` that say where a point lies and what it belongs to.
    """
    found = spread(rows, column)
    texts = list(found.texts)
    if "infinite" in rows:
        counts = zip(texts, rows["infinite"], rows["batches"], strict=True)
        texts = [
            f"{text} (infinite in {count} of {batches} batches)" if count else text
            for text, count, batches in counts
        ]
    x, keys = rows[axis[0]].to_numpy(float), tuple(rows[axis[1]])
    return Curve(tag, *named, keys, x, found.mean, found.low, found.high, tuple(texts))
