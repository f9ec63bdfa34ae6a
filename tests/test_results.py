"""Means, sigmas and sentences against sums done by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from evalkit.names import display_name
from evalkit.results.spreads import (
    format_factor,
    format_number,
    format_percent,
    format_spread,
    geometric_spread,
    spread,
)
from evalkit.results.summaries import (
    final_table,
    headline,
    near_zero,
    stages,
    summarize,
    summarize_batches,
)
from evalkit.storage.run_folder import Run, read_run
from tests.support.written_runs import cell, ngd_row, score_row, write_run


@pytest.fixture
def small(tmp_path: Path) -> Run:
    """Two checkpoints with two batches, floor 1, gamma of SGD 2 and then 4."""
    cells = []
    for step, name, ef in ((0, "first", (0.5, 1.5)), (9, "last", (100.0, 300.0))):
        for batch in (0, 1):
            sgd = 2.0 * (1 + batch)
            rows = [
                score_row("sgd", 1.0, sgd),
                score_row("ef", ef[batch], sgd, slope=-1.0 if batch and step else 1.0),
                ngd_row(0.6, sgd=sgd) | {"converged": not batch, "iterations": 10 + batch},
            ]
            cells.append(cell(name, step, step / 9, batch, rows, imbalance=10.0 * (1 + 2 * batch)))
    return read_run(write_run(tmp_path, cells))


def test_means_and_spreads_over_batches(small: Run) -> None:
    summary = summarize(small).set_index(["checkpoint", "method"])
    assert summary.index.tolist() == [
        (name, method) for name in ("first", "last") for method in ("sgd", "ef", "ngd")
    ]
    ef = summary.loc[("last", "ef")]
    assert ef["ratio_mean"] == pytest.approx(math.sqrt(100 * 300))
    assert ef["ratio_factor"] == pytest.approx(math.exp(math.log(3) / math.sqrt(2)))  # n - 1
    assert ef["gamma_mean"] == pytest.approx(math.sqrt(100 * 2 * 300 * 4))
    assert ef["efficiency_mean"] == pytest.approx(math.sqrt(1 / 200 / 1200))
    assert ef["cosine_sgd_mean"] == 0.5
    assert (ef["batches"], ef["ascents"], ef["infinite"], ef["undefined"]) == (2, 1, 0, 0)
    assert summary["ascents"].sum() == 1
    assert ef[["converged", "iterations", "relative_residual"]].isna().all()
    ngd = summary.loc[("first", "ngd")]
    assert (ngd["converged"], ngd["iterations"], ngd["relative_residual"]) == (0.5, 10.5, 1e-4)


def test_what_no_method_changes(small: Run) -> None:
    floors = summarize_batches(small).set_index("checkpoint")
    first = floors.loc["first"]
    assert (first["imbalance_mean"], first["imbalance_std"]) == (20, pytest.approx(200**0.5))
    assert first["floor_ratio_mean"] == pytest.approx(math.sqrt(1 / 2 / 4))
    assert (first["loss_mean"], first["loss_std"], first["batches"]) == (0.5, 0, 2)
    assert (first["num_samples"], first["gram_rank"]) == (8, 8)


def test_the_floor_does_not_need_sgd(small: Run) -> None:
    without = small.scores[small.scores["method"] != "sgd"]
    floors = summarize_batches(Run(small.folder, without, small.batches, {}))
    assert floors["floor_ratio_mean"].tolist() == pytest.approx([math.sqrt(1 / 8)] * 2)


def test_one_batch_has_no_sigma(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, [cell("c", 0, 1.0, 0, [score_row("ef", 0.5)])]))
    assert summarize(run)[["ratio_mean", "ratio_factor"]].to_numpy().tolist() == [[0.5, 1]]
    assert summarize_batches(run)["imbalance_std"].tolist() == [0]


def test_infinite_and_undefined_ratios_stay_visible(tmp_path: Path) -> None:
    ratios = [2.0, math.inf, math.nan]
    cells = [
        cell("c", 0, 1.0, batch, [score_row("ef", ratio), score_row("ief", math.nan)])
        for batch, ratio in enumerate(ratios)
    ]
    run = read_run(write_run(tmp_path, cells))
    ef, ief = summarize(run).to_dict("records")
    assert (ef["ratio_mean"], ef["infinite"], ef["undefined"]) == (math.inf, 1, 1)
    assert math.isnan(ef["ratio_factor"])
    assert (ef["efficiency_mean"], ef["batches"]) == (0, 3)
    assert math.isnan(ief["ratio_mean"])
    assert ief["undefined"] == 3
    # An infinite gamma has efficiency 0, and 0 times infinity says nothing of the floor.
    assert summarize_batches(run)["floor_ratio_mean"].tolist() == [0.5]
    assert headline(run) == (
        "At the end of training EF is at infx SGD's gamma, iEF at n/a; the floor is at 0.500x. "
        "EF's gamma is infinite in 1 of 3 batches."
    )


def test_curves_show_the_smallest_damping(tmp_path: Path) -> None:
    rows = [
        score_row(method, ratio, damping=damping)
        for method in ("sgd", "ef")
        for damping, ratio in ((1e-3, 1.0), (1e-12, 3.0 if method == "ef" else 1.0))
    ]
    run = read_run(write_run(tmp_path, [cell("c", 0, 1.0, 0, rows)]))
    summary = summarize(run)
    assert summary["damping"].tolist() == [1e-3, 1e-12] * 2
    assert near_zero(summary)["damping"].tolist() == [1e-12, 1e-12]
    assert final_table(run)["EF"].tolist() == ["3.00 17%"]
    assert headline(run).startswith("At the end of training EF is at 3.00x SGD's gamma;")


def test_stages_are_start_middle_and_end(tmp_path: Path) -> None:
    rows = [score_row("sgd", 1.0)]
    cells = [cell(f"{step:03d}", step, step / 100, 0, rows) for step in (0, 5, 10, 40, 90, 95, 100)]
    run = read_run(write_run(tmp_path / "seven", cells))
    assert stages(summarize(run)) == {"start": "000", "middle": "040", "end": "100"}
    run = read_run(write_run(tmp_path / "two", cells[:2]))
    assert stages(summarize(run)) == {"start": "000", "end": "005"}
    run = read_run(write_run(tmp_path / "one", cells[3:4]))
    assert stages(summarize(run)) == {"end": "040"}


def test_the_final_table_is_checkpoint_by_method(small: Run) -> None:
    table = final_table(small)
    assert table.columns.tolist() == ["checkpoint", "progress", "SGD", "EF", "NGD"]
    assert table["checkpoint"].tolist() == ["first", "last"]
    # In a batch EF is below the exact natural gradient, which cannot be.
    assert table["EF"].tolist() == ["0.866* 41%", "173 0.2%"]
    assert table["NGD"].tolist() == ["0.600* 59%", "0.600 59%"]
    assert table["SGD"].tolist() == ["1.00 35%"] * 2


def test_the_headline_names_methods_best_first(small: Run) -> None:
    assert headline(small) == (
        "At the end of training NGD is at 0.600x SGD's gamma, EF at 173x; the floor is at 0.354x. "
        "EF points uphill in 1 of 2 batches."
    )


def test_the_headline_of_a_part_of_training(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, [cell("early", 3, 0.25, 0, [score_row("sgd", 1.0)])]))
    assert (
        headline(run) == "At checkpoint early (progress 0.25) the floor is at 0.500x SGD's gamma."
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.6234, "0.623"),
        (0.9999, "1.00"),
        (9.996, "10.0"),
        (540.7, "541"),
        (99999.0, "1.00e+05"),
        (65432.1, "65432"),
        (0.000708, "7.08e-04"),
        (-0.5, "-0.500"),
        (0.0, "0"),
        (math.inf, "inf"),
        (math.nan, "n/a"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("mean", "sigma", "text"),
    [
        (0.6234, 0.0312, "0.623 ± 0.031"),
        (937.2, 721.9, "937 ± 722"),
        (104452.0, 37338.0, "(1.04 ± 0.37)e+05"),
        (1.0, 0.0, "1.00"),
        (math.inf, math.nan, "inf"),
    ],
)
def test_sigma_goes_to_the_last_digit_of_the_mean(mean: float, sigma: float, text: str) -> None:
    assert format_spread(mean, sigma) == text


@pytest.mark.parametrize(
    ("mean", "factor", "text"),
    [
        (456.0, 2.134, "456 ×/÷ 2.13"),
        (0.6234, 1.0, "0.623"),
        (math.inf, math.nan, "inf"),
        (0.0, math.nan, "0"),
        (math.nan, math.nan, "n/a"),
    ],
)
def test_a_geometric_sigma_is_a_factor(mean: float, factor: float, text: str) -> None:
    assert format_factor(mean, factor) == text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0, 8.0], (4.0, math.exp(math.log(4) / math.sqrt(2)))),
        ([0.3, 0.3, 0.3], (0.3, 1.0)),
        ([0.0, 1.0], (0.0, math.nan)),
        ([math.inf, 1.0], (math.inf, math.nan)),
        ([math.inf, math.inf], (math.inf, math.nan)),
        ([math.inf, 0.0], (math.nan, math.nan)),
        ([], (math.nan, math.nan)),
    ],
)
def test_geometric_spread(values: list[float], expected: tuple[float, float]) -> None:
    assert geometric_spread(np.array(values)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("share", "text"), [(0.524, "52%"), (0.0021, "0.2%"), (1.0, "100%"), (math.nan, "n/a")]
)
def test_efficiency_is_in_percent(share: float, text: str) -> None:
    assert format_percent(share) == text


def test_no_bar_of_an_efficiency_goes_beyond_the_floor(tmp_path: Path) -> None:
    cells = [
        cell("c", 0, 1.0, batch, [score_row("ngd", ratio)])
        for batch, ratio in enumerate((0.5, 0.9))
    ]
    found = spread(summarize(read_run(write_run(tmp_path, cells))), "efficiency")
    assert found.low[0] < found.mean[0] < found.high[0] <= 1


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("ief", "iEF"),
        ("ief-tikhonov", "iEF (Tikhonov)"),
        ("sf:labels_per_sample=4", "SF (labels_per_sample=4)"),
        ("ngd:tolerance=1e-9:max_iterations=5", "NGD (tolerance=1e-9, max_iterations=5)"),
        ("ief-tikhonov:a=1", "iEF (Tikhonov, a=1)"),
        ("mine", "mine"),
    ],
)
def test_display_names(method: str, name: str) -> None:
    assert display_name(method) == name
