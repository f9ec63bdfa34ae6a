"""How curves, bars, floors and hover tables are drawn with Bokeh, for charts in a page.

What belongs to one curve is named by the curve's tag, by which a page switches it on and off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import (
    ColumnDataSource,
    DataRange1d,
    GlyphRenderer,
    HoverTool,
    LinearScale,
    LogScale,
    LogTickFormatter,
    Range1d,
)
from bokeh.plotting import figure
from bokeh.themes import Theme

from evalkit.figures.palette import Style

SPREAD = "spread"
"""Tag of what shows single batches."""
_EDGE = "edge"
_TOOLS = "box_zoom,pan,wheel_zoom,reset,save"
# Bokeh's names of matplotlib's markers, and how far they turn.
_MARKERS = {
    ".": ("circle", 0.0),
    "o": ("circle", 0.0),
    "v": ("inverted_triangle", 0.0),
    "^": ("triangle", 0.0),
    "<": ("triangle", math.pi / 2),
    ">": ("triangle", -math.pi / 2),
    "s": ("square", 0.0),
    "D": ("diamond", 0.0),
    "P": ("plus", 0.0),
    "X": ("plus", math.pi / 4),
    "p": ("hex", 0.0),
    "*": ("star", 0.0),
}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_TEXT = "#5c5c5c"
_LINES = "#8c8c8c"
_THEME = Theme(
    json={
        "attrs": {
            "Plot": {
                "background_fill_color": None,
                "border_fill_color": None,
                "outline_line_color": None,
                "min_border_left": 70,
                "min_border_right": 14,
            },
            "Axis": {
                "axis_label_text_color": _TEXT,
                "axis_label_text_font": _FONT,
                "axis_label_text_font_size": "13px",
                "axis_label_text_font_style": "normal",
                "axis_line_color": _LINES,
                "major_label_text_color": _TEXT,
                "major_label_text_font": _FONT,
                "major_label_text_font_size": "12px",
                "major_tick_line_color": _LINES,
                "minor_tick_line_color": None,
            },
            "Grid": {"grid_line_color": "#e4e4e4"},
        }
    }
)


@dataclass(frozen=True)
class Curve:
    """A line with markers and bars, and on demand the values that each point is the mean of.

    Attributes:
        tag: by which a page switches it, and its column of the hover table.
        name: as read.
        style: the style of line and markers.
        keys: what each point belongs to, such as a checkpoint.
        x: places of the points.
        mean: values of the points; infinite ones become triangles at the upper edge.
        low: lower ends of the bars.
        high: their upper ends; NaN at either end, or the same as the lower one, for no bar.
        texts: what the hover table says of each point.
        spread: x and y of single batches, drawn when they are asked for; empty for none.
    """

    tag: str
    name: str
    style: Style
    keys: tuple[Any, ...]
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    texts: tuple[str, ...]
    spread: tuple[np.ndarray, np.ndarray] = (np.empty(0), np.empty(0))


@dataclass(frozen=True)
class Stops:
    """The places along the x axis at which a chart says values.

    Attributes:
        keys: what each belongs to.
        x: where, ascending.
        columns: what names it in the hover table, by the name of the entry.
    """

    keys: tuple[Any, ...]
    x: np.ndarray
    columns: dict[str, tuple[str, ...]]


def empty_figure(labels: tuple[str, str], height: int, x_range: Range1d, **scales: str) -> figure:
    """Return a figure as wide as its place in the page; y follows what is switched on.

    Args:
        labels: the labels of x and y.
        height: in pixels.
        x_range: may be shared with other figures, which then zoom together.
        scales: ``x_axis_type`` and ``y_axis_type``; linear by default.
    """
    chart = figure(
        height=height,
        sizing_mode="stretch_width",
        tools=_TOOLS,
        active_drag="box_zoom",
        active_scroll=None,
        toolbar_location="above",
        x_axis_label=labels[0],
        y_axis_label=labels[1],
        x_range=x_range,
        y_range=DataRange1d(only_visible=True, renderers=[]),
        # Where triangles lie that stand for infinity: at the upper edge however far one zooms.
        extra_y_ranges={_EDGE: Range1d(0, 1, bounds=(0, 1), min_interval=1)},
        extra_y_scales={_EDGE: LinearScale()},
        **scales,
    )
    chart.toolbar.logo = None
    chart.xgrid.visible = False
    if isinstance(chart.y_scale, LogScale):
        # Up to 10000 in digits, powers of ten beyond.
        chart.yaxis.formatter = LogTickFormatter(min_exponent=4)
    return chart


def draw_curves(chart: figure, stops: Stops, curves: Sequence[Curve]) -> None:
    """Draw curves, and a table of their values that follows the pointer from stop to stop."""
    for curve in curves:
        _draw_curve(chart, curve)
    _add_hover(chart, stops, curves)


def shade_floor(chart: figure, floor: Curve) -> None:
    """Shade what no direction reaches, below the floor."""
    x, top = floor.x, floor.mean
    if len(x) == 1:
        x, top = x[0] + np.array([-0.02, 0.02]), top.repeat(2)
    # A log axis has no zero; eight decades down is out of sight.
    chart.varea(x, top * 1e-8, top, fill_color=floor.style.color, fill_alpha=0.16, name=floor.tag)


def document_json(charts: Sequence[figure]) -> dict[str, Any]:
    """Return charts as the JSON that BokehJS reads; equal charts give equal JSON."""
    document = Document(theme=_THEME)
    with document.models.freeze():  # otherwise every chart is gone through again with the next
        for chart in charts:
            document.add_root(chart)
    return _renumbered(dict(document.to_json(deferred=False)), {})


def _draw_curve(chart: figure, curve: Curve) -> None:
    """Draw line, markers and bars, which the y axis makes room for, and what is infinite."""
    log = isinstance(chart.y_scale, LogScale)
    finite = np.isfinite(curve.mean) & ((curve.mean > 0) | (not log))
    means = np.where(finite, curve.mean, np.nan)
    points = ColumnDataSource({"x": curve.x.tolist(), "y": means.tolist()})
    line = chart.line("x", "y", source=points, name=curve.tag, **_line_style(curve.style))
    barred = np.isfinite(curve.low) & np.isfinite(curve.high) & (curve.high > curve.low)
    parts = [line, *_draw_bars(chart, curve, finite & barred)]
    parts += _draw_spread(chart, curve)
    if curve.style.marker:
        marker, angle = _MARKERS[curve.style.marker]
        size = 8 if len(curve.x) <= 25 else 4
        look = {"fill_color": curve.style.color, "line_color": None, "name": curve.tag}
        kind = {"marker": marker, "angle": angle, "size": size}
        parts.append(chart.scatter("x", "y", source=points, **kind, **look))
    if isinstance(chart.y_range, DataRange1d):
        chart.y_range.renderers = [*chart.y_range.renderers, *parts]
    _draw_infinite(chart, curve)


def _draw_bars(chart: figure, curve: Curve, drawn: np.ndarray) -> list[GlyphRenderer]:
    """Draw bars at the points that ``drawn`` picks."""
    if not drawn.any():
        return []
    values = {"x": curve.x, "low": curve.low, "high": curve.high}
    ends = {name: column[drawn].tolist() for name, column in values.items()}
    look = {"line_color": curve.style.color, "line_alpha": 0.55, "line_width": 1.4}
    source = ColumnDataSource(ends)
    return [chart.segment("x", "low", "x", "high", source=source, name=curve.tag, **look)]


def _draw_spread(chart: figure, curve: Curve) -> list[GlyphRenderer]:
    """Draw a dot per batch, unseen until the page shows what carries the tag ``SPREAD``."""
    x, y = curve.spread
    drawn = np.isfinite(y) & ((y > 0) | (not isinstance(chart.y_scale, LogScale)))
    if not drawn.any():
        return []
    source = ColumnDataSource({"x": x[drawn].tolist(), "y": y[drawn].tolist()})
    look = {"fill_color": curve.style.color, "fill_alpha": 0.4, "line_color": None}
    kind = {"size": 4, "name": curve.tag, "visible": False}
    dots = chart.scatter("x", "y", source=source, **kind, **look)
    dots.tags = [SPREAD]
    return [dots]


def _draw_infinite(chart: figure, curve: Curve) -> None:
    """Draw triangles at the upper edge where means are infinite."""
    x = curve.x[np.isposinf(curve.mean)]
    if x.size:
        source = ColumnDataSource({"x": x.tolist(), "y": [0.975] * x.size})
        look = {"fill_color": curve.style.color, "line_color": None, "name": curve.tag}
        kind = {"marker": "triangle", "size": 11, "y_range_name": _EDGE}
        chart.scatter("x", "y", source=source, **kind, **look)


def _line_style(style: Style) -> dict[str, Any]:
    # Dashes are in line widths, of 2 pixels.
    dashes = [max(1, round(2 * length)) for length in style.dashes]
    return {"line_color": style.color, "line_dash": dashes, "line_width": 2}


def _add_hover(chart: figure, stops: Stops, curves: Sequence[Curve]) -> None:
    """Add invisible strips, one around each stop, and the table shown over them."""
    log = isinstance(chart.x_scale, LogScale)
    places = np.log(stops.x) if log else stops.x
    middles = (places[1:] + places[:-1]) / 2
    ends = np.concatenate([[places[0] - 0.05], middles, [places[-1] + 0.05]])
    edges = np.exp(ends) if log else ends
    data: dict[str, Any] = {"left": edges[:-1].tolist(), "right": edges[1:].tolist()}
    entries = []
    for place, (name, texts) in enumerate(stops.columns.items()):
        data[f"stop{place}"] = list(texts)
        entries.append((name, f"@stop{place}"))
    for curve in curves:
        said = dict(zip(curve.keys, curve.texts, strict=True))
        data[curve.tag] = [said.get(key, "–") for key in stops.keys]
        entries.append((curve.name, f"@{curve.tag}"))
    strips = chart.vstrip(
        "left",
        "right",
        source=ColumnDataSource(data),
        fill_alpha=0,
        line_alpha=0,
        hover_fill_color=_LINES,
        hover_fill_alpha=0.12,
        hover_line_alpha=0,
        level="underlay",
    )
    hover = HoverTool(
        renderers=[strips],
        tooltips=entries,
        point_policy="follow_mouse",
        show_arrow=False,
        visible=False,
    )
    chart.add_tools(hover)


def _renumbered(value: Any, numbers: dict[str, str]) -> Any:
    """Return JSON with the models numbered from 1 in order of appearance, not across a process."""
    if isinstance(value, dict):
        return {
            key: numbers.setdefault(item, f"p{len(numbers) + 1}")
            if key == "id" and isinstance(item, str)
            else _renumbered(item, numbers)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_renumbered(item, numbers) for item in value]
    return value
