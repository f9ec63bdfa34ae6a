"""What the interactive charts draw, and how they are told apart."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from bokeh.models import GlyphRenderer, HoverTool
from scipy.stats import gmean, gstd

from evalkit.figures.palette import method_styles, run_styles
from evalkit.report.page import curves
from evalkit.report.page.bokeh_figures import SPREAD, document_json
from evalkit.report.page.charts import Chart, draw_charts, method_keys
from evalkit.report.page.swatches import swatch
from evalkit.results.pairs import compare, parse_pair
from evalkit.results.sweeps import damping_places
from evalkit.storage.run_folder import read_run
from tests.support.colors import distance, on_dark_paper
from tests.support.written_runs import PROVENANCE, cell, score_row, write_run

DAMPINGS = (0.0, 1e-6, 1e-3)


def charts_of(
    folder: Path,
    ratios: list[float],
    dampings: tuple[float, ...],
    history: tuple[dict, ...] = (),
) -> dict[str, Chart]:
    """Return the charts of EF with one ratio per batch, at two checkpoints.

    Args:
        folder: of the run.
        ratios: of EF to SGD.
        dampings: the same ratios at each.
        history: what ``run.json`` says of the checkpoints.
    """
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
    write_run(folder, cells, {**PROVENANCE, "checkpoints": list(history)})
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
    assert list(charts) == ["ratio", "efficiency", "imbalance", "loss"]
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
    start, end = charts["damping-0"], charts["damping-1"]
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
    kinds = [chart.kind for chart in draw_charts(read_run(tmp_path))]
    assert kinds == ["ratio"] * 3 + ["efficiency"] * 3 + ["imbalance", "loss"]
    swatches = {swatch(style) for style in method_styles(methods).values()}
    assert len(swatches) == len(methods)
    assert len({key.tag for key in method_keys(methods)}) == len(methods) + 1


def test_pairs_run_along_training_with_their_intervals(tmp_path: Path) -> None:
    charts_of(tmp_path, [2.0, 4.0, 8.0], (1e-12,))
    run = read_run(tmp_path)
    table = compare(run, [parse_pair("ef/sgd"), parse_pair("sgd/ef")])
    charts = {chart.name: chart for chart in draw_charts(run, table)}
    assert list(charts) == ["ratio", "efficiency", "pairs", "imbalance", "loss"]
    assert [key.name for key in charts["pairs"].keys] == ["EF / SGD", "SGD / EF"]
    (line,) = drawn(charts["pairs"], "Line", "pair0")
    assert line["y"] == pytest.approx([4.0, 4.0])  # the geometric mean
    (bars,) = drawn(charts["pairs"], "Segment", "pair0")
    assert bars["low"] == pytest.approx(np.exp(table["low"][:2]))
    assert bars["high"] == pytest.approx(np.exp(table["high"][:2]))
    assert hovered(charts["pairs"])["EF / SGD"][0].startswith("4.00 (")
    # Relative to SGD a method looks as it does elsewhere; other pairs look like no method.
    looks = method_styles(["sgd", "ef"])
    assert charts["pairs"].keys[0].style == looks["ef"]
    assert charts["pairs"].keys[1].style not in (looks["ef"], looks["sgd"])


def test_pairs_of_one_batch_have_no_bars(tmp_path: Path) -> None:
    charts_of(tmp_path, [2.0], (1e-12,))
    run = read_run(tmp_path)
    charts = {c.name: c for c in draw_charts(run, compare(run, [parse_pair("ef/sgd")]))}
    assert drawn(charts["pairs"], "Segment", "pair0") == []
    assert drawn(charts["pairs"], "Line", "pair0")[0]["y"] == pytest.approx([2.0, 2.0])


def test_single_batches_wait_unseen(tmp_path: Path) -> None:
    chart = charts_of(tmp_path, [2.0, 4.0, math.inf], (1e-12, 1e-3))["ratio"]
    found = [item for item in chart.figure.renderers if SPREAD in item.tags]
    assert [item.name for item in found] == ["method0", "method1"]
    assert not any(item.visible for item in found)
    # At the smallest damping alone, the infinite one left out.
    assert found[1].data_source.data == {"x": [0.0, 0.0, 1.0, 1.0], "y": [2.0, 4.0, 2.0, 4.0]}


def test_of_many_batches_some_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "SPREAD_POINTS", 3)
    chart = charts_of(tmp_path, [2.0, 4.0, 8.0, 16.0], (1e-12,))["ratio"]
    found = [item for item in chart.figure.renderers if SPREAD in item.tags]
    assert all(len(item.data_source.data["x"]) == 3 for item in found)


def test_losses_and_validation_metrics_are_drawn_where_they_are_known(tmp_path: Path) -> None:
    known = {"training_loss": 0.7, "validation_accuracy": 0.9, "step": 3, "note": "x"}
    history = ({"name": "first", **known}, {"name": "last", "training_loss": 0.1, "epoch": 2})
    charts = charts_of(tmp_path, [2.0], (1e-12,), history)
    assert hovered(charts["loss"])["training loss"] == ["0.700", "0.100"]
    assert hovered(charts["loss"])["scored batches"] == ["0.500", "0.500"]
    assert hovered(charts["validation"]) == {
        "checkpoint": ["first", "last"],
        "progress": ["0.00", "1.00"],
        "validation accuracy": ["0.900", "–"],
    }
    assert charts["validation"].figure.yaxis.axis_label == "Validation accuracy"


@pytest.mark.parametrize("loss", ["0.1", None, True, math.nan])
def test_what_is_no_loss_is_not_drawn(tmp_path: Path, loss: object) -> None:
    entry = {"name": "first", "training_loss": loss}
    charts = charts_of(tmp_path, [2.0], (1e-12,), (entry,))
    assert [key.name for key in charts["loss"].keys] == ["scored batches"]
    assert "validation" not in charts


def test_a_loss_below_zero_has_a_linear_axis(tmp_path: Path) -> None:
    charts = charts_of(tmp_path, [2.0], (1e-12,), ({"name": "last", "validation_loss": -2.0},))
    assert drawn(charts["loss"], "Line", "loss1") == [{"x": [1.0], "y": [-2.0]}]
    assert charts["loss"].keys[1].name == "validation loss"


def test_methods_are_told_apart_on_dark_paper() -> None:
    """The two oranges, EF's and SF's, and all others as well."""
    methods = ["sgd", "ef", "ief", "ief-tikhonov", "sf", "ngd", *"abcdef"]
    for styles in (method_styles(methods), run_styles([str(number) for number in range(8)])):
        colors = [on_dark_paper(style.color) for style in styles.values()]
        pairs = itertools.combinations(colors, 2)
        assert min(distance(one, other) for one, other in pairs) > 20
    fixed = method_styles([])
    assert distance(*(on_dark_paper(fixed[method].color) for method in ("ef", "sf"))) > 40
