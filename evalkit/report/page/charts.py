"""Interactive charts from the tables of a run, for its page: what each shows, and of what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from bokeh.models import FixedTicker, NumeralTickFormatter, Range1d
from bokeh.plotting import figure

from evalkit.figures.groups import Group, groups_of
from evalkit.figures.palette import FLOOR, IMBALANCE
from evalkit.names import MANY, arranged, by_family
from evalkit.report.page.bokeh_figures import Stops, draw_curves, empty_figure, shade_floor
from evalkit.report.page.curves import (
    Axis,
    Key,
    first_to_last,
    interval_curve,
    mean_curve,
    method_curves,
    method_keys_of,
    pair_keys,
    series_keys,
    value_curve,
)
from evalkit.results.history import history_of
from evalkit.results.summaries import near_zero, stages, summarize, summarize_batches
from evalkit.results.sweeps import damping_places, is_sweep
from evalkit.storage.run_folder import Run

# Short: Bokeh draws a part of a long label a second time, at the left edge of the chart.
_PROGRESS = "Training progress"
_RATIO = "Ratio to SGD"
_FLOOR = Key("floor", "floor", FLOOR)
_LOG = Axis("progress", "checkpoint", log=True)
_LINEAR = Axis("progress", "checkpoint", log=False)
_DAMPING = Axis("place", "damping", log=True)
_PANEL = 290
"""Height in pixels of one of several panels."""


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        kind: ratio, efficiency, pairs, imbalance, loss, validation or damping; charts of one kind
            are panels of one figure.
        figure: what Bokeh draws.
        said: what it shows, for who does not see it.
        title: what tells it from its neighbours; may be empty.
        keys: the keys of the curves that it alone shows.
        part: its place among those of its kind, from 0; None where it is the only one.
    """

    kind: str
    figure: figure
    said: str
    title: str = ""
    keys: tuple[Key, ...] = ()
    part: int | None = None

    @property
    def name(self) -> str:
        """Its kind, with its place where there are several."""
        return self.kind if self.part is None else f"{self.kind}-{self.part}"


def draw_charts(run: Run, pairs: pd.DataFrame | None = None) -> list[Chart]:
    """Return every chart of a run: over progress at near-zero damping, and for a sweep by stage.

    Args:
        run: its tables and provenance.
        pairs: the result of ``pairs.compare``; may be empty.
    """
    summary, floors = summarize(run), summarize_batches(run)
    methods = run_methods(run)
    progress = _Progress(floors)
    charts = progress.of_methods(near_zero(summary), near_zero(run.scores), methods)
    if pairs is not None and len(pairs):
        charts.append(progress.of_pairs(pairs, methods))
    charts.append(progress.of_imbalance(run.batches))
    charts += progress.of_history(run.batches, run.provenance)
    if is_sweep(run):
        charts += damping_charts(summary, floors, methods)
    return charts


def run_methods(run: Run) -> tuple[str, ...]:
    """Return the methods of a run in the order of its tables: many family by family."""
    ordered = run.scores.sort_values(["step", "checkpoint", "batch"], kind="stable")
    return arranged(str(method) for method in ordered["method"].unique())


class _Progress:
    """Charts against training progress, which zoom together along x.

    Args:
        floors: the result of ``results.summarize_batches``.
    """

    def __init__(self, floors: pd.DataFrame) -> None:
        progress = floors["progress"].to_numpy(float)
        names = {
            "checkpoint": tuple(floors["checkpoint"]),
            "progress": tuple(f"{value:.2f}" for value in progress),
        }
        self.floors = floors
        self.stops = Stops(names["checkpoint"], progress, names)
        self.span = Range1d(-0.02, 1.02)

    def of_methods(
        self, shown: pd.DataFrame, scores: pd.DataFrame, methods: Sequence[str]
    ) -> list[Chart]:
        """Return ratio and efficiency, a curve per method; of many a panel for each family.

        Args:
            shown: of ``results.summarize``, one damping per method.
            scores: the rows behind it.
            methods: of the run, in the order that tags and spare styles are given.
        """
        groups = groups_of(methods)
        parts = range(len(groups)) if len(groups) > 1 else [None]
        panels = list(zip(groups, parts, strict=True))
        floor = mean_curve(_FLOOR, self.floors, "floor_ratio", _LOG)
        charts = []
        for group, part in panels:
            ratio = self._empty(_RATIO, 380 if part is None else _PANEL, log=True)
            shade_floor(ratio, floor)
            curves = method_curves(shown, "ratio", _LOG, methods, scores, group)
            draw_curves(ratio, self.stops, [*curves, floor])
            said = first_to_last([*curves, floor])
            charts.append(Chart("ratio", ratio, said, group.title, part=part))
        for group, part in panels:
            efficiency = self._empty("Efficiency", 320 if part is None else _PANEL)
            efficiency.y_range = Range1d(-0.03, 1.03)
            efficiency.yaxis.formatter = NumeralTickFormatter(format="0%")
            curves = method_curves(shown, "efficiency", _LINEAR, methods, scores, group)
            draw_curves(efficiency, self.stops, curves)
            said = first_to_last(curves)
            charts.append(Chart("efficiency", efficiency, said, group.title, part=part))
        return charts

    def of_pairs(self, pairs: pd.DataFrame, methods: Sequence[str]) -> Chart:
        """Return ratios of pairs of methods, with their intervals."""
        chart = self._empty("Ratio of the pair", 320, log=True)
        keys = pair_keys(list(pairs["pair"].unique()), methods)
        curves = [interval_curve(key, pairs[pairs["pair"] == key.name], _LOG) for key in keys]
        draw_curves(chart, self.stops, curves)
        return Chart("pairs", chart, first_to_last(curves), keys=tuple(keys))

    def of_imbalance(self, batches: pd.DataFrame) -> Chart:
        """Return the imbalance of per-sample gradients and of logit gradients."""
        chart = self._empty("Imbalance", 260, log=True)
        keys = [Key(tag, *named) for tag, named in IMBALANCE.items()]
        curves = [mean_curve(key, self.floors, key.tag, _LOG, batches) for key in keys]
        draw_curves(chart, self.stops, curves)
        return Chart("imbalance", chart, first_to_last(curves), keys=tuple(keys))

    def of_history(self, batches: pd.DataFrame, provenance: Mapping[str, Any]) -> list[Chart]:
        """Return the loss, and the validation metrics where ``run.json`` knows any."""
        history = history_of(provenance, self.floors)
        losses, metrics = history.losses, history.metrics
        scored, *keys = series_keys("loss", ["scored batches", *losses.values()])
        loss = self._empty("Loss", 260, log=history.losses_are_positive)
        axis = _LOG if history.losses_are_positive else _LINEAR
        curves = [mean_curve(scored, self.floors, "loss", axis, batches)]
        curves += [
            value_curve(key, history.table, column, axis)
            for key, column in zip(keys, losses, strict=True)
        ]
        draw_curves(loss, self.stops, curves)
        charts = [Chart("loss", loss, first_to_last(curves), keys=(scored, *keys))]
        if metrics:
            keys = series_keys("metric", list(metrics.values()))
            chart = self._empty(keys[0].name.capitalize() if len(keys) == 1 else "Validation", 260)
            curves = [
                value_curve(key, history.table, column, _LINEAR)
                for key, column in zip(keys, metrics, strict=True)
            ]
            draw_curves(chart, self.stops, curves)
            charts.append(Chart("validation", chart, first_to_last(curves), keys=tuple(keys)))
        return charts

    def _empty(self, label: str, height: int, log: bool = False) -> figure:
        kind = "log" if log else "linear"
        return empty_figure((_PROGRESS, label), height, self.span, y_axis_type=kind)


def damping_charts(
    summary: pd.DataFrame, floors: pd.DataFrame, methods: Sequence[str]
) -> list[Chart]:
    """Return ratio against damping, a chart per stage of training, those of a row on the same axes.

    Many methods have a row for each family.

    Args:
        summary: the result of ``results.summarize``.
        floors: the result of ``results.summarize_batches``.
        methods: the methods of the run, in the order that tags and spare styles are given.
    """
    damping = _Damping(summary, floors, methods)
    charts: list[Chart] = []
    for group in groups_of(methods):
        row: list[Chart] = []
        for stage, checkpoint in stages(summary).items():
            title = f"{stage}: {checkpoint}"
            if group.title:
                title = f"{group.title}, {title}"
            chart, said = damping.at(checkpoint, group)
            if row:
                chart.y_range = row[0].figure.y_range
            row.append(Chart("damping", chart, said, title, part=len(charts) + len(row)))
        charts += row
    return charts


class _Damping:
    """Charts against damping, which zoom together along x.

    Args:
        summary: the result of ``results.summarize``.
        floors: the result of ``results.summarize_batches``.
        methods: the methods of the run.
    """

    def __init__(self, summary: pd.DataFrame, floors: pd.DataFrame, methods: Sequence[str]) -> None:
        self.places = damping_places(summary["damping"])
        self.x = np.array(list(self.places.values()))
        self.labels = {place: f"{damping:g}" for damping, place in self.places.items()}
        texts = {"damping": tuple(self.labels.values())}
        self.stops = Stops(tuple(self.places), self.x, texts)
        self.span = Range1d(float(self.x[0]) / 3, float(self.x[-1]) * 3)
        self.placed = summary.assign(place=summary["damping"].map(self.places))
        self.floors, self.methods = floors, methods

    def at(self, checkpoint: str, group: Group) -> tuple[figure, str]:
        """Return the chart of a group of methods at one checkpoint, and what it shows."""
        labels = ("Damping", _RATIO)
        chart = empty_figure(labels, 330, self.span, x_axis_type="log", y_axis_type="log")
        chart.xaxis.ticker = FixedTicker(ticks=self.x[:: math.ceil(len(self.x) / 5)].tolist())
        chart.xaxis.major_label_overrides = self.labels
        here = self.floors[self.floors["checkpoint"] == checkpoint]
        floor = here.loc[here.index.repeat(len(self.x))]
        floor = floor.assign(place=self.x, damping=list(self.places))
        lowest = mean_curve(_FLOOR, floor, "floor_ratio", _DAMPING)
        shade_floor(chart, lowest)
        rows = self.placed[self.placed["checkpoint"] == checkpoint]
        rows = rows.sort_values("damping", kind="stable")
        curves = method_curves(rows, "ratio", _DAMPING, self.methods, group=group)
        draw_curves(chart, self.stops, [*curves, lowest])
        return chart, first_to_last(curves, "smallest to the largest damping")


def method_keys(methods: Sequence[str]) -> list[Key]:
    """Return the key of the curves of a run's methods, and of the floor."""
    return [*method_keys_of(methods), _FLOOR]


def key_groups(methods: Sequence[str]) -> list[tuple[str, list[Key]]]:
    """Return the keys of :func:`method_keys` by family where there are many; else in one group.

    Args:
        methods: in the order of :func:`run_methods`.

    Returns:
        The title of each group, empty for one that is not a family, and its keys.
    """
    if len(methods) <= MANY:
        return [("", method_keys(methods))]
    keys = dict(zip(methods, method_keys_of(methods), strict=True))
    groups = [(name, [keys[m] for m in members]) for name, members in by_family(methods).items()]
    return [*groups, ("", [_FLOOR])]
