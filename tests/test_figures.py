"""What the figures draw: the lines, the bars, the axes, and files that do not change."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import gmean, gstd

from evalkit.errors import EvalkitError
from evalkit.figures import draw_figures, write_figures
from evalkit.figures.drawing import bar_start, log_axis, log_limits
from evalkit.figures.palette import method_styles
from evalkit.figures.plots import plot_efficiency, plot_imbalance, plot_ratio
from evalkit.results.summaries import near_zero, summarize, summarize_batches
from evalkit.storage.run_folder import Run, read_run
from tests.support.written_runs import cell, ngd_row, score_row, write_run


def run_of(folder: Path, ef: list[list[float]], dampings: tuple[float, ...] = (1e-12,)) -> Run:
    """Return a run with a checkpoint per list and a batch per ratio of EF; gamma of SGD is 2."""
    cells = []
    for place, ratios in enumerate(ef):
        progress = place / max(len(ef) - 1, 1)
        for batch, ratio in enumerate(ratios):
            rows = [
                row | {"damping": damping}
                for damping in dampings
                for row in (score_row("sgd", 1.0), score_row("ef", ratio), ngd_row(0.6))
            ]
            many = 10.0 ** (1 + place)
            cells.append(cell(f"c{place}", place, progress, batch, rows, imbalance=many))
    return read_run(write_run(folder, cells))


def curves(ax: Axes, color: str) -> list[Line2D]:
    """Return the lines in data coordinates of one colour, rings around single points left out."""
    return [
        line
        for line in ax.lines
        if line.get_color() == color
        and line.get_transform() == ax.transData
        and line.get_markerfacecolor() != "none"
    ]


def bars(ax: Axes, color: str) -> np.ndarray:
    """Return the ends of the bars of one colour, a row (lower, upper) per bar."""
    lines = [item for item in ax.collections if isinstance(item, LineCollection)]
    found = [item for item in lines if np.allclose(item.get_color()[0][:3], to_rgb(color))]
    return np.array([segment[:, 1] for item in found for segment in item.get_segments()])


def labels(ax: Axes) -> list[str]:
    """Return the names beside the lines, from the lowest."""
    return [text.get_text() for text in sorted(ax.texts, key=lambda text: text.get_position()[1])]


def test_ratios_are_lines_of_the_means(tmp_path: Path) -> None:
    run = run_of(tmp_path, [[0.5, 0.7], [2.0, 4.0], [50.0, 150.0]])
    ax = plot_ratio(near_zero(summarize(run)), summarize_batches(run), Figure().subplots())
    styles = method_styles(["ef", "ngd", "sgd"])
    [ef] = curves(ax, styles["ef"].color)
    assert ef.get_xdata().tolist() == [0, 0.5, 1]
    assert ef.get_ydata() == pytest.approx([0.35**0.5, 8**0.5, 7500**0.5])
    [ngd] = curves(ax, styles["ngd"].color)
    assert ngd.get_ydata() == pytest.approx([0.6] * 3)
    [floor] = curves(ax, "#8c8c8c")
    assert floor.get_ydata().tolist() == [0.5] * 3
    assert any(list(line.get_ydata()) == [1, 1] for line in ax.lines)
    assert ax.get_yscale() == "log"
    assert labels(ax) == ["floor", "NGD", "SGD", "EF"]


def test_bars_are_one_sigma_and_cut_half_a_decade_down(tmp_path: Path) -> None:
    run = run_of(tmp_path, [[0.5, 0.7], [1.0, 1000.0]])
    ax = plot_ratio(near_zero(summarize(run)), summarize_batches(run), Figure().subplots())
    (near, factor), (far, wide) = ((gmean(pair), gstd(pair)) for pair in ([0.5, 0.7], [1, 1000]))
    assert wide > 10
    assert bars(ax, method_styles([])["ef"].color) == pytest.approx(
        np.array([[near / factor, near * factor], [far / math.sqrt(10), far * wide]])
    )
    assert bar_start(np.array([1.0, 1.0]), np.array([0.9, -4.0])).tolist() == [0.9, 1 / 10**0.5]


def test_axes_hold_every_bar(tmp_path: Path) -> None:
    run = run_of(tmp_path, [[0.5, 0.7], [1.0, 1000.0]])
    ax = plot_ratio(near_zero(summarize(run)), summarize_batches(run), Figure().subplots())
    lower, upper = ax.get_ylim()
    drawn = bars(ax, method_styles([])["ef"].color)
    assert lower < 0.5
    assert upper > drawn.max()
    ticks = ax.get_yticks()
    assert 3 <= len(ticks) <= 8
    assert ((lower <= ticks) & (ticks <= upper)).all()


@pytest.mark.parametrize(
    ("lower", "upper", "shown"),
    [
        (0.87, 1.15, ["0.9", "1", "1.1"]),
        (1.02, 1.36, ["1.1", "1.2", "1.3"]),
        (0.8, 2.2, ["0.8", "1", "1.5", "2"]),
        (0.4, 40, ["0.5", "1", "2", "5", "10", "20"]),
        (2e4, 9e4, [rf"${step} \cdot 10^{{4}}$" for step in (2, 3, 4, 5, 6, 8)]),
        (1e-9, 1e3, ["$10^{-8}$", "$10^{-6}$", "$10^{-4}$", "0.01", "1", "100"]),
    ],
)
def test_log_axes_have_round_ticks_and_two_at_least(
    lower: float, upper: float, shown: list[str]
) -> None:
    for which in ("x", "y"):
        ax = Figure().subplots()
        log_axis(ax, lower, upper, which)
        axis = getattr(ax, f"{which}axis")
        found = [label.get_text() for label in axis.get_ticklabels() if label.get_text()]
        assert len(found) >= 2
        assert len(set(found)) == len(found)
        assert which == "x" or found == shown


@pytest.mark.parametrize("step", np.linspace(-0.5, 0.5, 9).tolist())
def test_the_narrowest_and_the_widest_axes_have_two_ticks(step: float) -> None:
    for spread, which in itertools.product((1.0, 1.5, 4.0, 12.0, 40.0, 1e4), ("x", "y")):
        ax, end = Figure().subplots(), 10**step
        log_axis(ax, *log_limits(np.array([end, spread * end]), end), which)
        assert len(getattr(ax, f"get_{which}ticks")()) >= 2


def test_infinite_means_are_marked_at_the_edge_and_break_no_line(tmp_path: Path) -> None:
    run = run_of(tmp_path, [[0.5], [math.inf], [3.0], [math.inf]])
    ax = plot_ratio(near_zero(summarize(run)), summarize_batches(run), Figure().subplots())
    color = method_styles([])["ef"].color
    [line] = curves(ax, color)
    np.testing.assert_array_equal(line.get_ydata(), [0.5, np.nan, 3.0, np.nan])
    edge = [line for line in ax.lines if line.get_marker() == 6]
    assert [list(mark.get_xdata()) for mark in edge] == [pytest.approx([1 / 3, 1])]
    assert math.isfinite(ax.get_ylim()[1])
    assert labels(ax)[-1] == "EF (infinite)"


def test_imbalance_and_efficiency(tmp_path: Path) -> None:
    run = run_of(tmp_path, [[0.5], [2.0], [100.0]])
    ax = plot_imbalance(summarize_batches(run), Figure().subplots())
    assert sorted(list(line.get_ydata()) for line in ax.lines[:2]) == [[5] * 3, [10, 100, 1000]]
    assert labels(ax) == ["logits", "parameters"]
    ax = plot_efficiency(near_zero(summarize(run)), Figure().subplots())
    [ef] = curves(ax, method_styles([])["ef"].color)
    assert ef.get_ydata().tolist() == [1, 0.25, 0.005]
    assert ax.get_yscale() == "linear"
    assert ax.yaxis.get_major_formatter()(0.5) == "50%"
    assert ax.get_ylim()[0] <= 0 < 1 <= ax.get_ylim()[1]


def test_names_beside_lines_never_overlap(tmp_path: Path) -> None:
    methods = ["sgd", "ef", "ief", "ief-tikhonov", "sf", "sf:labels_per_sample=4", "ngd", "$bad$"]
    rows = [score_row(method, 0.9 + 1e-4 * place) for place, method in enumerate(methods)]
    run = read_run(write_run(tmp_path, [cell("c", 0, p, 0, rows) for p in (0.0, 1.0)]))
    figure = draw_figures(run)["ratio"]
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda b: b.y0)
    assert len(boxes) == len(methods) + 1
    assert all(low.y1 <= high.y0 + 2 for low, high in itertools.pairwise(boxes))
    inside = figure.axes[0].get_window_extent()
    assert all(box.x0 > inside.x1 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_every_method_has_one_look_of_its_own() -> None:
    methods = ["mine", "sgd", "ef", "ief", "ief-tikhonov", "sf", "ngd", "sf:labels_per_sample=4"]
    styles = method_styles(methods)
    looks = [styles[method] for method in methods]
    assert len({look.color for look in looks}) == len(methods)
    assert len({look.marker for look in looks}) == len(methods)
    assert len({look.dashes for look in looks}) == len(methods)
    grey = sorted(
        np.dot(to_rgb(styles[m].color), (0.299, 0.587, 0.114)) for m in ["ef", "ief", "sf"]
    )
    assert min(np.diff([0.1, *grey])) > 0.08
    assert method_styles(["ef"])["ef"] == styles["ef"]


@pytest.mark.parametrize(
    ("ef", "panels"), [([[0.7], [0.9]], 2), ([[0.7], [500.0]], 3), ([[0.7]], 2)]
)
def test_far_ratios_add_a_panel_near_one(
    tmp_path: Path, ef: list[list[float]], panels: int
) -> None:
    axes = draw_figures(run_of(tmp_path, ef))["ratio"].axes
    assert len(axes) == panels
    assert axes[-1].get_ylabel() == "Imbalance"
    if panels == 3:
        assert axes[1].get_ylim()[1] < 3 < 500 < axes[0].get_ylim()[1]


def test_a_sweep_adds_ratio_against_damping(tmp_path: Path) -> None:
    run = run_of(tmp_path, [[0.7], [2.0], [5.0]], dampings=(0.0, 1e-6, 1e-3))
    figure = draw_figures(run)["damping"]
    assert [ax.get_title() for ax in figure.axes] == ["start: c0", "middle: c1", "end: c2"]
    for ax, ratio in zip(figure.axes, (0.7, 2.0, 5.0), strict=True):
        [ef] = curves(ax, method_styles([])["ef"].color)
        assert ef.get_ydata().tolist() == [ratio] * 3
        assert ef.get_xdata().tolist() == [1e-8, 1e-6, 1e-3]  # zero stands two decades below
        ticks = ax.xaxis.get_major_formatter()
        assert [ticks(place) for place in (1e-8, 1e-6)] == ["0", "$10^{-6}$"]


def test_files_are_written_and_stay_the_same(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [[0.7, 0.8], [math.inf, 20.0]], dampings=(1e-12, 1e-3))
    first = write_figures(run, tmp_path / "figures")
    assert [path.name for path in first] == [
        f"{name}.{kind}" for name in ("ratio", "efficiency", "damping") for kind in ("png", "svg")
    ]
    bytes_ = [path.read_bytes() for path in first]
    assert [path.read_bytes() for path in write_figures(run, tmp_path / "figures")] == bytes_
    for path, content in zip(first, bytes_, strict=True):
        if path.suffix == ".svg":
            assert b"<svg" in content
            assert b"dc:date" not in content
        else:
            assert content.startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [[0.7]])
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(EvalkitError, match="figures"):
        write_figures(run, tmp_path / "figures")


def test_nothing_positive_to_draw_is_drawn_empty(tmp_path: Path) -> None:
    rows = [score_row("ef", math.nan), score_row("ief", math.inf)]
    tables = cell("c", 0, 1.0, 0, rows, imbalance=math.inf, logit_imbalance=math.nan)
    run = read_run(write_run(tmp_path / "run", [tables]))
    paths = write_figures(run, tmp_path / "figures")
    assert all(path.stat().st_size > 1000 for path in paths)
