"""Paired differences, intervals of their mean, and statements corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from evalkit.overlap import overlap_of
from evalkit.results.intervals import (
    EFFICIENCY,
    FEWEST_BATCHES,
    LOG_RATIO,
    Interval,
    differences,
    holm,
    hull,
    interval,
)

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
DRAWS: dict[str, Draw] = {
    "normal": lambda draws, shape: draws.normal(0, 1, shape),
    "uniform": lambda draws, shape: draws.uniform(-1, 1, shape),
    "long tails": lambda draws, shape: draws.standard_t(3, shape),
    "log of exponential": lambda draws, shape: np.log(draws.exponential(1, shape)) + np.euler_gamma,
    "lognormal": lambda draws, shape: draws.lognormal(0, 0.5, shape) - math.exp(0.125),
    "gamma": lambda draws, shape: draws.gamma(2, 1, shape) - 2,
    "exponential": lambda draws, shape: draws.exponential(1, shape) - 1,
}
"""Differences with mean 0, from no skewness to one of 2."""


@pytest.mark.parametrize("pairs", [3, 5, 8, 20])
@pytest.mark.parametrize("kind", DRAWS)
def test_coverage(kind: str, pairs: int) -> None:
    low, high, _ = hull(DRAWS[kind](np.random.default_rng(pairs), (20_000, pairs)))
    assert ((low <= 0) & (high >= 0)).mean() >= 0.93


def test_many_batches_need_no_correction() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 2000)
    found = interval(values)
    reach = student.isf(0.015, 1999) * values.std(ddof=1) / math.sqrt(2000)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - reach, abs=0.02 * reach)
    assert found.high == pytest.approx(values.mean() + reach, abs=0.02 * reach)


def test_the_interval_of_what_is_not_skewed_is_that_of_student() -> None:
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    expected = ttest_1samp(values, 0)
    found, ends = interval(values), expected.confidence_interval(0.97)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert found.p_value == pytest.approx(expected.pvalue / 0.6)


def test_intervals_turn_over_with_the_differences() -> None:
    values = np.random.default_rng(2).exponential(1, 7)
    there, back = interval(values), interval(-values)
    assert (back.low, back.high, back.p_value) == (-there.high, -there.low, there.p_value)


@pytest.mark.parametrize("pairs", [3, 4, 9])
def test_statement_and_interval_agree(pairs: int) -> None:
    draws = np.random.default_rng(3)
    for values in draws.exponential(1, (400, pairs)) - draws.choice([0, 0.3, 1, 2], (400, 1)):
        found = interval(values)
        assert found.low <= found.mean <= found.high
        assert (found.statement(LOG_RATIO) != "undecided") == found.excludes_zero


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0], Interval(0, 0, 0, 1, 1)),
        ([0.5], Interval(0.5, -math.inf, math.inf, 1, 1)),
        ([0.5, 0.5], Interval(0.5, -math.inf, math.inf, 2, 1)),
        ([0.4, 0.6], Interval(0.5, -math.inf, math.inf, 2, 1)),
        ([0.5, 0.5, 0.5], Interval(0.5, 0.5, 0.5, 3, 0)),
        ([0.5, math.inf], Interval(math.inf, math.inf, math.inf, 2, 0)),
    ],
)
def test_what_needs_no_distribution(values: list[float], expected: Interval) -> None:
    assert interval(np.array(values)) == expected


def test_nothing_is_said_of_one_or_two_batches() -> None:
    for pairs in range(1, FEWEST_BATCHES):
        values = np.linspace(5, 6, pairs)
        assert interval(values).statement(LOG_RATIO) == "undecided"
    assert interval(np.array([5.0, 5.01, 5.02])).statement(LOG_RATIO) == "worse"


def test_what_is_unknown_stays_so() -> None:
    for values in ([], [math.nan, 1.0], [math.inf, -math.inf]):
        found = interval(np.array(values))
        assert math.isnan(found.mean)
        assert not found.excludes_zero
        assert found.statement(LOG_RATIO) == "undecided"


def test_equal_infinities_do_not_differ() -> None:
    first = np.array([math.inf, 2.0, math.inf])
    assert differences(first, np.array([math.inf, 1.5, 1.0])).tolist() == [0.0, 0.5, math.inf]


def test_direction_comes_from_the_metric() -> None:
    up, around = Interval(0.2, 0.1, 0.3, 9, 0.01), Interval(0.2, -0.1, 0.5, 9, 0.3)
    assert up.statement(LOG_RATIO) == "worse"
    assert up.statement(EFFICIENCY) == "better"
    assert up.statement(EFFICIENCY, 0.08) == "undecided"
    assert around.statement(LOG_RATIO) == "undecided"


def test_holm() -> None:
    found = holm([0.04, math.nan, 0.01, 0.03, 0.02])
    assert math.isnan(found[1])
    assert [found[0], *found[2:]] == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
    assert holm([0.03]) == [0.03]


def test_of_many_statements_at_once_hardly_any_is_wrong() -> None:
    draws = np.random.default_rng(4)
    wrong = {"alone": 0, "corrected": 0}
    for _ in range(300):
        _, _, p_values = hull(draws.normal(0, 1, (20, 8)))
        wrong["alone"] += min(p_values) <= 0.05
        wrong["corrected"] += min(holm(p_values)) <= 0.05
    assert wrong["alone"] > 0.3 * 300
    assert wrong["corrected"] <= 0.06 * 300


@pytest.mark.parametrize(("batches", "size", "samples"), [(20, 160, 178), (20, 160, 1437)])
def test_how_much_too_narrow_overlapping_batches_make_intervals(
    batches: int, size: int, samples: int
) -> None:
    draws = np.random.default_rng(5)
    means, errors = [], []
    for _ in range(200):
        population = draws.normal(0, 1, samples)
        drawn = [draws.permutation(population)[:size].mean() for _ in range(batches)]
        means.append(np.mean(drawn))
        errors.append(np.var(drawn, ddof=1) / batches)
    measured = math.sqrt(np.var(means) / np.mean(errors))
    assert overlap_of(batches, size, samples).narrowness == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(
    ("batches", "samples", "phrase"),
    [
        (100, 178, "90% of a batch are in any other"),
        (100, 178, "30 times too narrow"),
        (5, 100, "all hold the same samples"),
        (20, 1437, ""),
        (1, 178, ""),
    ],
)
def test_batches_that_overlap_much_are_noted(batches: int, samples: int, phrase: str) -> None:
    note = overlap_of(batches, 160, samples).note
    assert phrase in note
    assert bool(note) == bool(phrase)
