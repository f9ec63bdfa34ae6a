"""Curves of a chart from rows of a table: where points lie, how far bars reach, what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from evalkit.counts import counted
from evalkit.figures.drawing import bar_start
from evalkit.figures.groups import Group
from evalkit.figures.palette import QUIET, Style, method_styles, run_styles
from evalkit.names import display_name
from evalkit.report.page.bokeh_figures import Curve
from evalkit.results.spreads import format_number, spread

SPREAD_POINTS = 3000
"""The most single batches that one curve shows; of more, evenly spaced ones."""
NO_BATCHES = pd.DataFrame()


@dataclass(frozen=True)
class Key:
    """What tells a curve: a tag to switch it by, its name, its style."""

    tag: str
    name: str
    style: Style


@dataclass(frozen=True)
class Axis:
    """How the rows of a table become points.

    Attributes:
        place: the column that says where a point lies.
        key: the column that says what it belongs to.
        log: whether the values lie on a log axis.
    """

    place: str
    key: str
    log: bool


def method_tags(methods: Sequence[str]) -> dict[str, str]:
    """Return a tag per method, safe in HTML and in Bokeh's templates."""
    return {method: f"method{place}" for place, method in enumerate(methods)}


def method_keys_of(methods: Sequence[str]) -> list[Key]:
    """Return the key of each method's curve, in the order that spare styles are given."""
    styles, tags = method_styles(methods), method_tags(methods)
    return [Key(tags[method], display_name(method), styles[method]) for method in methods]


def series_keys(kind: str, names: Sequence[str]) -> list[Key]:
    """Return a key per name for curves that stand for no method, with tags that begin ``kind``."""
    styles = run_styles(names)
    return [Key(f"{kind}{place}", name, styles[name]) for place, name in enumerate(names)]


def pair_keys(labels: Sequence[str], methods: Sequence[str]) -> list[Key]:
    """Return the key of each pair of methods: relative to SGD a method looks as it always does.

    Args:
        labels: the labels of the pairs, ``first / second``.
        methods: the methods of the run, in the order that spare styles are given.
    """
    alone = {f"{display_name(method)} / {display_name('sgd')}": method for method in methods}
    looks = [alone.get(label, label) for label in labels]
    styles = method_styles([*methods, *looks])
    named = enumerate(zip(labels, looks, strict=True))
    return [Key(f"pair{place}", label, styles[look]) for place, (label, look) in named]


def method_curves(
    rows: pd.DataFrame,
    column: str,
    axis: Axis,
    methods: Sequence[str],
    batches: pd.DataFrame = NO_BATCHES,
    group: Group | None = None,
) -> list[Curve]:
    """Return a curve per method of a group that has rows.

    Args:
        rows: the result of ``results.summarize``, one point each.
        column: the column of ``rows``, less its ending.
        axis: how rows become points.
        methods: the methods of the run, in the order that tags and spare styles are given.
        batches: rows of scores whose values are the spread; may be empty.
        group: the methods to draw; all by default.
    """
    curves = []
    for method, key in zip(methods, method_keys_of(methods), strict=True):
        own = rows[rows["method"] == method]
        if not len(own) or (group is not None and method not in group.shown):
            continue
        single = batches[batches["method"] == method] if len(batches) else batches
        if group is not None and method in group.quiet:
            key, single = replace(key, style=replace(key.style, color=QUIET)), NO_BATCHES
        curves.append(mean_curve(key, own, column, axis, single))
    return curves


def first_to_last(curves: Sequence[Curve], ends: str = "first to the last checkpoint") -> str:
    """Return the ends of curves as a sentence, for who does not see them.

    Args:
        curves: that a chart shows.
        ends: what their first and their last point are.
    """
    told = [
        f"{curve.name} {_told(curve, 0)} to {_told(curve, -1)}" for curve in curves if len(curve.x)
    ]
    return f"From the {ends}: {'; '.join(told)}."


def _told(curve: Curve, place: int) -> str:
    """Return the mean of a point as its table writes it, without its spread."""
    first = curve.texts[place].split()[0]
    return first if first.endswith("%") else format_number(float(curve.mean[place]))


def mean_curve(
    key: Key, rows: pd.DataFrame, column: str, axis: Axis, batches: pd.DataFrame = NO_BATCHES
) -> Curve:
    """Return mean and one sigma of a column as a curve; on a log axis bars are cut below.

    Args:
        key: the key of the curve.
        rows: a point each.
        column: the column of ``rows``, less its ending.
        axis: how rows become points.
        batches: rows whose ``column`` is the spread; may be empty.
    """
    found = spread(rows, column)
    texts = list(found.texts)
    if "infinite" in rows:
        counts = zip(texts, rows["infinite"], rows["batches"], strict=True)
        texts = [
            f"{text} (infinite in {count} of {counted(batches, 'batch')})" if count else text
            for text, count, batches in counts
        ]
    low = bar_start(found.mean, found.low) if axis.log else found.low
    values = (found.mean, low, found.high)
    return _curve(key, rows, axis, values, texts, _spread(batches, column, axis))


def interval_curve(key: Key, rows: pd.DataFrame, axis: Axis) -> Curve:
    """Return the geometric mean of a pair's ratio and its interval as a curve.

    Args:
        key: the key of the curve.
        rows: the result of ``pairs.compare``, of one pair.
        axis: how rows become points.
    """
    with np.errstate(over="ignore"):
        low, middle, high = (
            np.exp(rows[name].to_numpy(float)) for name in ("low", "log_ratio", "high")
        )
    texts = [
        f"{format_number(one)} ({format_number(below)} to {format_number(above)}), {said}"
        for one, below, above, said in zip(middle, low, high, rows["statement"], strict=True)
    ]
    return _curve(key, rows, axis, (middle, low, high), texts)


def value_curve(key: Key, rows: pd.DataFrame, column: str, axis: Axis) -> Curve:
    """Return a column without uncertainty as a curve; places without a value are left out."""
    rows = rows[rows[column].notna()]
    values = rows[column].to_numpy(float)
    return _curve(key, rows, axis, (values, values, values), list(map(format_number, values)))


def _curve(
    key: Key,
    rows: pd.DataFrame,
    axis: Axis,
    values: tuple[np.ndarray, np.ndarray, np.ndarray],
    texts: Sequence[str],
    single: tuple[np.ndarray, np.ndarray] = (np.empty(0), np.empty(0)),
) -> Curve:
    """Return a curve through ``values``: mean, lower and upper ends of the bars."""
    x, keys = rows[axis.place].to_numpy(float), tuple(rows[axis.key])
    return Curve(key.tag, key.name, key.style, keys, x, *values, tuple(texts), single)


def _spread(batches: pd.DataFrame, column: str, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of single batches, y to the digits that a chart can show."""
    if not len(batches):
        return np.empty(0), np.empty(0)
    count = min(len(batches), SPREAD_POINTS)
    chosen = batches.iloc[np.linspace(0, len(batches) - 1, count).round().astype(int)]
    y = np.array([float(f"{value:.4g}") for value in chosen[column].to_numpy(float)])
    return chosen[axis.place].to_numpy(float), y
