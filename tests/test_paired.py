"""Paired differences and their bootstrap intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from evalkit.paired import EFFICIENCY, LOG_RATIO, Interval, differences, interval


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_intervals_are_near_those_of_the_t_distribution() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 200)
    found = interval(values, generator())
    reach = t.ppf(0.975, 199) * values.std(ddof=1) / math.sqrt(200)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - reach, abs=0.1 * reach)
    assert found.high == pytest.approx(values.mean() + reach, abs=0.1 * reach)
    assert found == interval(values, generator())


def test_coverage() -> None:
    draws = np.random.default_rng(2)
    found = [interval(draws.exponential(1.0, 40), generator()) for _ in range(100)]
    assert sum(one.low <= 1 <= one.high for one in found) >= 85


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0], Interval(0, 0, 0, 1)),
        ([0.5], Interval(0.5, -math.inf, math.inf, 1)),
        ([0.5, 0.5, 0.5], Interval(0.5, 0.5, 0.5, 3)),
        ([0.5, math.inf], Interval(math.inf, math.inf, math.inf, 2)),
    ],
)
def test_intervals_without_resampling(values: list[float], expected: Interval) -> None:
    assert interval(np.array(values), generator()) == expected


def test_what_is_unknown_stays_so() -> None:
    for values in ([], [math.nan, 1.0], [math.inf, -math.inf]):
        found = interval(np.array(values), generator())
        assert math.isnan(found.mean)
        assert not found.excludes_zero
        assert found.statement(LOG_RATIO) == "undecided"


def test_equal_infinities_do_not_differ() -> None:
    first = np.array([math.inf, 2.0, math.inf])
    assert differences(first, np.array([math.inf, 1.5, 1.0])).tolist() == [0.0, 0.5, math.inf]


def test_direction_comes_from_the_metric() -> None:
    up, around = Interval(0.2, 0.1, 0.3, 9), Interval(0.2, -0.1, 0.5, 9)
    assert up.statement(LOG_RATIO) == "worse"
    assert up.statement(EFFICIENCY) == "better"
    assert around.statement(LOG_RATIO) == "undecided"
