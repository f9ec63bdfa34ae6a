"""Interactive charts of several runs: a line per run, of pairs, of efficiency and of imbalance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from bokeh.models import NumeralTickFormatter, Range1d

from evalkit.names import display_name
from evalkit.report.page.bokeh_figures import Curve, Stops, draw_curves, empty_figure
from evalkit.report.page.charts import Chart
from evalkit.report.page.curves import (
    Axis,
    Key,
    first_to_last,
    interval_curve,
    mean_curve,
    series_keys,
)
from evalkit.results.summaries import near_zero, summarize, summarize_batches
from evalkit.storage.run_folder import Run

_LOG = Axis("progress", "progress", log=True)
_LINEAR = Axis("progress", "progress", log=False)
_HEIGHT = 330


def run_keys(names: Sequence[str]) -> list[Key]:
    """Return the key of each run's curves."""
    return series_keys("run", names)


def charts_of_runs(
    runs: Mapping[str, Run], pairs: pd.DataFrame, methods: Sequence[str]
) -> list[Chart]:
    """Return charts against training progress that zoom together, a curve per run in each.

    Args:
        runs: by name.
        pairs: the result of ``pairs.compare_runs``, a chart per pair.
        methods: a chart of efficiency each.
    """
    keys = dict(zip(runs, run_keys(list(runs)), strict=True))
    floors = {name: summarize_batches(run) for name, run in runs.items()}
    summaries = {name: near_zero(summarize(run)) for name, run in runs.items()}
    places = np.unique(np.concatenate([table["progress"] for table in floors.values()]))
    stops = Stops(tuple(places), places, {"progress": tuple(f"{place:.2f}" for place in places)})
    span = Range1d(-0.02, 1.02)
    charts = []
    for part, (label, rows) in enumerate(pairs.groupby("pair", sort=False)):
        found = {name: rows[rows["run"] == name] for name in runs}
        curves = [interval_curve(keys[name], own, _LOG) for name, own in found.items()]
        chart = empty_figure(
            ("Training progress", "Ratio of the pair"), _HEIGHT, span, y_axis_type="log"
        )
        draw_curves(chart, stops, curves)
        charts.append(Chart("pairs", chart, first_to_last(curves), str(label), part=part))
    for part, method in enumerate(methods):
        curves = list(_efficiencies(summaries, method, keys))
        chart = empty_figure(("Training progress", "Efficiency"), _HEIGHT, span)
        chart.y_range = Range1d(-0.03, 1.03)
        chart.yaxis.formatter = NumeralTickFormatter(format="0%")
        draw_curves(chart, stops, curves)
        title = display_name(method)
        charts.append(Chart("efficiency", chart, first_to_last(curves), title, part=part))
    curves = [mean_curve(keys[name], table, "imbalance", _LOG) for name, table in floors.items()]
    chart = empty_figure(("Training progress", "Imbalance"), _HEIGHT, span, y_axis_type="log")
    draw_curves(chart, stops, curves)
    return [*charts, Chart("imbalance", chart, first_to_last(curves))]


def _efficiencies(
    summaries: Mapping[str, pd.DataFrame], method: str, keys: Mapping[str, Key]
) -> Iterator[Curve]:
    for name, table in summaries.items():
        rows = table[table["method"] == method]
        if len(rows):
            yield mean_curve(keys[name], rows, "efficiency", _LINEAR)
