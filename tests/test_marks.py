"""Marks on scores that are not to be relied on: which rows, which sign, what is said of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evalkit.doubts import MARKED, iteration_limit, judge, mean_error, ratio_errors
from evalkit.report.page import render_page
from evalkit.report.writing import derived_of
from evalkit.results.marks import Mark, Marks, joined, marks_of
from evalkit.results.pairs import compare, parse_pair, statements
from evalkit.results.summaries import final_table, headline
from evalkit.storage.run_folder import Run, read_run
from tests.support.written_runs import cell, score_row, write_run

FINE = {"error": 1e-7, "dtype": "float64"}
LIMIT = {"solver": "cg", "iterations": 200, "converged": False}


def run_of(folder: Path, *rows: dict[str, Any], batches: int = 1) -> Run:
    """Return a run of one checkpoint whose batches have the same rows."""
    cells = [cell("c", 1, 1.0, batch, list(rows)) for batch in range(batches)]
    return read_run(write_run(folder, cells))


def marks(folder: Path, *rows: dict[str, Any], batches: int = 1) -> Marks:
    return marks_of(run_of(folder, *rows, batches=batches).scores)


def sgd(**more: Any) -> dict[str, Any]:
    return score_row("sgd", 1.0, **{**FINE, **more})


CAUSES = {
    "float32": (
        score_row("ef", 2.0, error=0.5, dtype="float32"),
        "EF: gamma may be off by 50% in 1 of 1 row, found in float32: leave out `dtype=float32`, "
        "or give `dtype=float64`.",
    ),
    "no digit": (
        score_row("ef", 2.0, error=4.3, dtype="float32"),
        "EF: gamma may be wrong in every digit in 1 of 1 row",
    ),
    "cancellation": (
        score_row("sf", 2.0, error=8e-3, dtype="float64"),
        "raise `damping`, as to 1e-11.",
    ),
    "direct in float32": (
        score_row("ngd", 0.6, error=0.1, dtype="float32", solver="direct", converged=False),
        "leave out `dtype=float32`",
    ),
    "iterations": (
        score_row("ngd", 0.6, error=0.07, dtype="float32", **LIMIT),
        "NGD: gamma may be 7% above the smallest in 1 of 1 row, where the solver ended at its "
        "limit of iterations: raise it, as in `methods=ngd:max_iterations=800`, or take "
        "ngd:solver=direct",
    ),
    "fewer iterations": (
        score_row(
            "ngd:max_iterations=5", 0.6, error=0.07, dtype="float64", **{**LIMIT, "iterations": 5}
        ),
        "`methods=ngd:max_iterations=20",
    ),
    "a limit of its own": (
        score_row("ngd", 0.6, error=0.07, dtype="float32", **{**LIMIT, "iterations": 3}),
        "where the solver stopped before its tolerance: let it take more iterations, give "
        "`dtype=float64`, or take ngd:solver=direct",
    ),
    "tolerance": (
        score_row(
            "ngd:tolerance=0.1", 0.6, error=0.07, dtype="float64", **{**LIMIT, "iterations": 3}
        )
        | {"converged": True},
        "lower ngd:tolerance and ngd:floor_tolerance",
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_sentence_says_what_to_do(name: str, tmp_path: Path) -> None:
    row, said = CAUSES[name]
    found = marks(tmp_path, sgd(), row)
    assert found.sign("c", row["method"], 1e-12) == "*"
    assert found.sign("c", "sgd", 1e-12) == ""
    [sentence] = found.sentences
    assert sentence.startswith("* ")
    assert said in sentence


@pytest.mark.parametrize("error", [0.0, MARKED, math.nan])
def test_small_and_unstated_errors_are_not_marked(error: float, tmp_path: Path) -> None:
    row = score_row("ef", 2.0, error=error, dtype="float32")
    found = marks(tmp_path, sgd(error=error), row)
    assert found.sentences == ()
    assert found.sign("c", "ef", 1e-12) == ""


def test_a_gradient_that_cancels_marks_every_ratio(tmp_path: Path) -> None:
    found = marks(tmp_path, sgd(error=0.02), score_row("ef", 2.0, **FINE))
    assert found.sign("c", "ef", 1e-12) == "*"
    assert found.of_gamma("c", "ef", 1e-12) is None
    mark = found.of_ratio("c", "ef", 1e-12)
    assert mark is not None
    assert "SGD, which it is relative to" in mark.meaning
    assert "every ratio" in found.sentences[0]


@pytest.mark.parametrize(
    ("method", "limit"),
    [
        ("ngd", 200),
        ("ngd:max_iterations=50:solver=cg", 50),
        ("ngd:max_iterations=50:max_iterations=7", 7),  # as the method itself takes them
        ("ngd:max_iterations= 50", 50),
        ("ngd:max_iterations", 200),
        ("mine:max_iterations=\u00b2", 200),
    ],
)
def test_the_limit_of_iterations_is_read_as_methods_are(method: str, limit: int) -> None:
    assert iteration_limit(method) == limit


def test_errors_of_means_and_ratios() -> None:
    assert mean_error([0.1, 0.3]) == pytest.approx(math.sqrt(1.1 * 1.3) - 1)
    assert mean_error([1e-5, 3e-5]) == pytest.approx(2e-5, rel=1e-4)
    assert mean_error([0.1, math.nan]) == pytest.approx(math.sqrt(1.1) - 1)
    assert mean_error([0.1, math.inf]) == math.inf
    assert math.isnan(mean_error([math.nan]))
    found = ratio_errors([0.1, math.nan, 0.1, math.nan], [0.2, 0.2, math.nan, math.nan])
    assert found.tolist() == pytest.approx([0.32, 0.2, 0.1, math.nan], nan_ok=True)


def test_the_error_of_a_mean_covers_gammas_that_are_off_by_theirs() -> None:
    draws = np.random.default_rng(0)
    exact, errors = np.exp(draws.normal(0, 1, 20)), draws.uniform(0, 0.5, 20)
    for signs in (np.ones(20), draws.choice([-1, 1], 20)):
        found = exact * (1 + errors) ** signs
        off = math.exp(abs(np.log(found / exact).mean())) - 1
        assert off <= mean_error(errors) * (1 + 1e-12)


def test_one_batch_of_many_needs_a_word_alone(tmp_path: Path) -> None:
    cells = [
        cell("c", 1, 1.0, n, [sgd(), score_row("sf", 2.0, error=error, dtype="float64")])
        for n, error in enumerate([4e-3, *[1e-8] * 9])
    ]
    found = marks_of(read_run(write_run(tmp_path, cells)).scores)
    assert found.sign("c", "sf", 1e-12) == "†"
    assert "in 1 of 10 rows" in found.sentences[0]
    assert found.sentences[1].startswith("† SF: single batches have a stated error above 0.1%")


@pytest.mark.parametrize(
    ("efficiency", "error", "sign"),
    [
        (1 + 5e-7, 1e-7, ""),
        (1 + 1e-5, 1e-5, "†"),
        (1.81, 1e-7, "*"),
        (1.81, math.nan, "*"),
        (1.0001, math.nan, "†"),
    ],
)
def test_an_efficiency_above_one_is_marked(
    efficiency: float, error: float, sign: str, tmp_path: Path
) -> None:
    row = score_row("sf", 0.5, error=error, dtype="float64", efficiency=efficiency)
    found = marks(tmp_path, sgd(), row)
    assert found.sign("c", "sf", 1e-12) == sign
    assert len(found.sentences) == bool(sign)
    if sign:
        assert found.sentences[0].startswith(f"{sign} SF: efficiency above 100%")


@pytest.mark.parametrize(
    ("ngd", "error", "signs"),
    [
        (0.6, 1e-7, ""),
        (0.6 * (1 + 5e-7), 0.0, ""),
        (0.6 * (1 + 1e-5), 1e-4, "†"),
        (0.7, 1e-7, "**"),
        (0.7, math.nan, "**"),
    ],
)
def test_the_exact_natural_gradient_above_another_method_is_marked(
    ngd: float, error: float, signs: str, tmp_path: Path
) -> None:
    rows = [sgd(), score_row("ief", 0.6, **FINE), score_row("ngd", ngd, **{**FINE, "error": error})]
    found = marks(tmp_path, *rows)
    assert "".join(found.sign("c", name, 1e-12) for name in ("ngd", "ief")) == signs
    assert len(found.sentences) == bool(signs)
    if signs:
        assert "NGD: gamma above that of iEF by" in found.sentences[0]


def test_damping_explains_a_natural_gradient_above_another_method(tmp_path: Path) -> None:
    """With lambda = 4, gamma^2 + lambda (|d| / slope)^2 is what it has least of."""
    ief = score_row("ief", 0.6, damping=4.0, norm=2.0, **FINE)
    ngd = score_row("ngd", 0.7, damping=4.0, norm=1.0, **FINE)
    found = marks(tmp_path / "explained", ief, ngd)
    assert (found.sign("c", "ngd", 4.0), found.sign("c", "ief", 4.0)) == ("†", "")
    assert "at damping 4" in found.sentences[0]
    wrong = marks(tmp_path / "wrong", ief | {"norm": 1.0}, ngd)
    assert (wrong.sign("c", "ngd", 4.0), wrong.sign("c", "ief", 4.0)) == ("*", "*")


def test_other_dampings_and_batches_are_not_compared(tmp_path: Path) -> None:
    rows = [score_row("ief", 0.6, **FINE), score_row("ngd", 0.7, damping=1.0, **FINE)]
    assert marks(tmp_path, *rows).sentences == ()


def test_degenerate_numbers_are_judged_without_a_warning() -> None:
    rows = [
        score_row(method, 1.0, gamma=gamma, slope=slope, damping=damping, batch=batch)
        for batch, (gamma, slope) in enumerate([(0.0, 1.0), (math.inf, 0.0), (math.nan, 0.0)])
        for method in ("ief", "ngd")
        for damping in (0.0, 1.0)
    ]
    columns = {"checkpoint": "c", "error": math.nan, "dtype": None, "solver": None}
    judged = judge(pd.DataFrame(rows).assign(**columns))
    assert not judged[["above others", "tie", "damped"]].to_numpy().any()


def test_marks_of_one_value_are_joined() -> None:
    assert joined(None, None) is None
    assert joined(Mark("†", "a"), None, Mark("*", "b"), Mark("*", "a")) == Mark("*", "a; b")


def test_table_headline_and_page_carry_the_mark(tmp_path: Path) -> None:
    wrong = score_row("ef", 2.0, error=0.5, dtype="float32")
    run = run_of(tmp_path, sgd(), wrong, score_row("ief", 0.75, **FINE))
    assert final_table(run)["EF"].tolist() == ["2.00* 25%"]
    assert final_table(run)["iEF"].tolist() == ["0.750 67%"]
    text = headline(run)
    assert "iEF is at 0.750x SGD's gamma, EF at 2.00x*;" in text
    assert text.endswith("What is marked * is not to be relied on.")
    page = render_page(run, derived_of(run))
    assert page.count('<span class="mark" role="img"') == 2  # of the ratio and of the pair
    assert "1 of 1 batch with a stated error above 0.1%; the mean may be off by 50%" in page
    assert '<li><span class="mark">*</span><span>EF: gamma may be off by 50%' in page


def test_a_page_without_marks_explains_none(tmp_path: Path) -> None:
    run = run_of(tmp_path, sgd(), score_row("ief", 0.75, **FINE))
    assert 'class="mark' not in render_page(run, derived_of(run))


@pytest.mark.parametrize(
    ("error", "statement"), [(1e-7, "worse"), (0.5, "worse"), (1.5, "undecided")]
)
def test_a_pair_within_the_stated_error_is_undecided(
    error: float, statement: str, tmp_path: Path
) -> None:
    ef = score_row("ef", 2.0, error=error, dtype="float32")
    table = compare(run_of(tmp_path, sgd(), ef, batches=4), [parse_pair("ef/sgd")])
    [row] = table.to_dict("records")
    assert row["statement"] == statement
    assert row["error"] == pytest.approx(error, rel=1e-6, abs=2e-7)
    assert row["mark"] == ("*" if error > MARKED else "")
    said = statements(table)[0]
    assert ("2* (" in said) == (error > MARKED)
    assert (": within the stated error" in said) == (statement == "undecided")


def test_solvers_that_state_small_errors_do_not_ask_for_more(tmp_path: Path) -> None:
    direct = {"solver": "direct", "iterations": 2, "converged": False, "relative_residual": 1e-4}
    run = run_of(tmp_path, sgd(), score_row("ngd", 0.9, **{**FINE, "error": 1.2e-4}, **direct))
    page = render_page(run, derived_of(run))
    assert "the stated error of each of these gammas is at most 0.012%" in page
    assert "ngd:solver=direct" not in page
