"""What the interactive charts draw, and how they are told apart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from bokeh.models import GlyphRenderer, HoverTool
from scipy.stats import gmean, gstd

from evalkit.figures.palette import method_styles
from evalkit.page.bokeh_figures import document_json
from evalkit.page.charts import Chart, draw_charts, method_keys
from evalkit.page.swatches import swatch
from evalkit.run import read_run
from evalkit.sweeps import damping_places
from tests.test_run import cell, score_row, write_run

DAMPINGS = (0.0, 1e-6, 1e-3)


def charts_of(folder: Path, ratios: list[float], dampings: tuple[float, ...]) -> dict[str, Chart]:
    """Return the charts of EF with one ratio per batch, at two checkpoints."""
    methods = (("sgd", [1.0] * len(ratios)), ("ef", ratios))
    cells = [
        cell(
            name,
            step,
            float(step),
            batch,
            [
                score_row(method, values[batch], damping=damping)
                for method, values in methods
                for damping in dampings
            ],
        )
        for step, name in enumerate(("first", "last"))
        for batch in range(len(ratios))
    ]
    write_run(folder, cells)
    return {chart.name: chart for chart in draw_charts(read_run(folder))}


def drawn(chart: Chart, glyph: str, tag: str = "method1") -> list[dict]:
    """Return the data of the renderers of one kind that carry a tag."""
    found = [item for item in chart.figure.renderers if isinstance(item, GlyphRenderer)]
    return [
        dict(item.data_source.data)
        for item in found
        if type(item.glyph).__name__ == glyph and item.name == tag
    ]


def hovered(chart: Chart) -> dict[str, list[str]]:
    """Return the hover table: what each entry says at every stop."""
    tool = chart.figure.select_one(HoverTool)
    data = tool.renderers[0].data_source.data
    return {name: data[reference[1:]] for name, reference in tool.tooltips}


def test_a_curve_shows_mean_and_one_sigma(tmp_path: Path) -> None:
    charts = charts_of(tmp_path, [2.0, 4.0], (1e-12,))
    assert list(charts) == ["ratio", "efficiency", "imbalance"]
    assert drawn(charts["ratio"], "Line") == [{"x": [0.0, 1.0], "y": [gmean([2, 4])] * 2}]
    (bars,) = drawn(charts["ratio"], "Segment")
    assert bars["high"] == pytest.approx([gmean([2, 4]) * gstd([2, 4])] * 2)
    assert bars["low"] == pytest.approx([gmean([2, 4]) / gstd([2, 4])] * 2)
    assert drawn(charts["imbalance"], "Line", "imbalance") == [{"x": [0.0, 1.0], "y": [10.0, 10.0]}]
    assert hovered(charts["ratio"]) == {
        "checkpoint": ["first", "last"],
        "progress": ["0.00", "1.00"],
        "SGD": ["1.00", "1.00"],
        "EF": ["2.83 ×/÷ 1.63"] * 2,
        "floor": ["0.500", "0.500"],
    }


def test_bars_on_a_log_axis_end_half_a_decade_down(tmp_path: Path) -> None:
    (bars,) = drawn(charts_of(tmp_path, [0.1, 10.0], (1e-12,))["ratio"], "Segment")
    assert bars["low"] == pytest.approx([1 / math.sqrt(10)] * 2)


def test_infinite_means_leave_the_line_for_the_upper_edge(tmp_path: Path) -> None:
    chart = charts_of(tmp_path, [2.0, math.inf], (1e-12,))["ratio"]
    (line,) = drawn(chart, "Line")
    assert np.isnan(line["y"]).all()
    assert drawn(chart, "Segment") == []
    triangles = drawn(chart, "Scatter")[-1]
    assert triangles["x"] == [0.0, 1.0]
    assert all(0.9 < height < 1 for height in triangles["y"])
    assert hovered(chart)["EF"] == ["inf (infinite in 1 of 2 batches)"] * 2


def test_a_sweep_has_a_chart_per_stage_on_the_same_axes(tmp_path: Path) -> None:
    charts = charts_of(tmp_path, [2.0, 4.0], DAMPINGS)
    start, end = charts["damping-start"], charts["damping-end"]
    assert (start.title, end.title) == ("start: first", "end: last")
    assert start.figure.x_range is end.figure.x_range
    assert start.figure.y_range is end.figure.y_range
    assert drawn(end, "Line")[0]["x"] == pytest.approx([1e-8, 1e-6, 1e-3])
    assert hovered(end)["damping"] == ["0", "1e-06", "0.001"]


def test_zero_damping_lies_two_decades_below_the_smallest_other() -> None:
    assert damping_places([1e-3, 0, 1e-6]) == pytest.approx({0: 1e-8, 1e-6: 1e-6, 1e-3: 1e-3})
    assert damping_places([0.0]) == {0.0: 0.01}


def test_equal_charts_give_equal_json_with_every_reference_defined(tmp_path: Path) -> None:
    run = read_run(tmp_path) if charts_of(tmp_path, [2.0, 4.0], DAMPINGS) else None
    first, second = (
        json.dumps(document_json([chart.figure for chart in draw_charts(run)])) for _ in range(2)
    )
    assert first == second
    named, defined = set(), set()

    def visit(value: object) -> None:
        if isinstance(value, dict):
            if "id" in value:
                (defined if "type" in value else named).add(value["id"])
            for item in value.values():
                visit(item)
        elif isinstance(value, list):
            for item in value:
                visit(item)

    visit(json.loads(first))
    assert named <= defined == {f"p{number + 1}" for number in range(len(defined))}


def test_every_style_of_a_method_can_be_drawn(tmp_path: Path) -> None:
    methods = ["sgd", "ef", "ief", "ief-tikhonov", "sf", "ngd", *"abcdef"]
    rows = [score_row(method, 0.5) for method in methods]
    write_run(tmp_path, [cell("only", 0, 1.0, 0, rows)])
    assert len(draw_charts(read_run(tmp_path))) == 3
    swatches = {swatch(style) for style in method_styles(methods).values()}
    assert len(swatches) == len(methods)
    assert len({key.tag for key in method_keys(methods)}) == len(methods) + 1
