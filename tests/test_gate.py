"""Verdicts of the gate, on runs whose numbers are chosen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from evalkit.errors import EvalkitError
from evalkit.gate.baseline import baseline_of
from evalkit.gate.check import check
from evalkit.gate.comparison import ALL
from evalkit.results.intervals import interval
from tests.support.gates import SGD_GAMMA, Made, checked, rows_of

EXPECTED = (0.5, 0.6, 0.7, 0.8)


def scaled(*factors: float) -> Made:
    """Return EF with the ratio of each batch changed by a factor."""
    return Made({"ef": [ratio * by for ratio, by in zip(EXPECTED, factors, strict=True)]})


def test_a_run_is_the_same_as_itself(tmp_path: Path) -> None:
    made = Made({"ef": EXPECTED, "ief": (0.3, 0.3, 0.3, 0.3)}, checkpoints=("first", "last"))
    found = checked(tmp_path, made, made)
    assert found.passed
    assert len(found.comparisons) == 2 * 3 * 2
    assert {row.verdict for row in found.comparisons} == {"same"}
    assert max(abs(row.difference) for row in found.comparisons) < 1e-7


@pytest.mark.parametrize(
    ("factors", "ratio", "efficiency"),
    [
        ((1.1, 1.1, 1.1, 1.1), "worse", "worse"),
        ((0.9, 0.9, 0.9, 0.9), "improved", "improved"),
        ((1.04, 1.04, 1.04, 1.04), "same", "same"),
        ((1.06, 1.06, 1.06, 1.06), "worse", "same"),  # 0.058 of the logarithm, 0.045 of efficiency
        ((2.0, 1.0, 1.0, 1.0), "same", "same"),  # far in the mean, but one batch alone
    ],
)
def test_a_change_counts_beyond_tolerance_and_interval(
    tmp_path: Path, factors: tuple[float, ...], ratio: str, efficiency: str
) -> None:
    found = rows_of(checked(tmp_path, scaled(*factors), Made()))
    assert (found["log ratio"].verdict, found["efficiency"].verdict) == (ratio, efficiency)


def test_the_numbers_of_a_row(tmp_path: Path) -> None:
    row = rows_of(checked(tmp_path, scaled(1.1, 1.2, 1.3, 1.4), Made()))["log ratio"]
    expected = sum(map(math.log, EXPECTED)) / 4
    difference = sum(map(math.log, (1.1, 1.2, 1.3, 1.4))) / 4
    assert row.expected == pytest.approx(expected)
    assert row.obtained == pytest.approx(expected + difference)
    assert row.difference == pytest.approx(difference)
    assert row.low < row.difference < row.high
    assert row.batches == 4
    assert (row.checkpoint, row.method, row.damping) == ("first", "ef", 1e-12)


@pytest.mark.parametrize(("tolerance", "verdict"), [(0.2, "same"), (0.05, "worse"), (0.0, "worse")])
def test_the_tolerance_decides(tmp_path: Path, tolerance: float, verdict: str) -> None:
    found = checked(tmp_path, scaled(1.1, 1.1, 1.1, 1.1), Made(), tolerance)
    assert rows_of(found)["log ratio"].verdict == verdict
    assert found.passed == (verdict == "same")


@pytest.mark.parametrize("tolerance", [-0.1, math.inf, math.nan])
def test_a_tolerance_out_of_range_is_refused(tmp_path: Path, tolerance: float) -> None:
    with pytest.raises(EvalkitError, match="tolerance"):
        checked(tmp_path, Made(), Made(), tolerance)


def test_the_interval_is_that_of_the_paired_differences(tmp_path: Path) -> None:
    row = rows_of(checked(tmp_path, scaled(1.1, 1.2, 1.3, 1.4), Made()))["log ratio"]
    alone = interval(np.log([1.1, 1.2, 1.3, 1.4]))
    assert (row.low, row.high) == pytest.approx((alone.low, alone.high), rel=1e-5)
    assert alone.p_value < row.p_value <= 2 * alone.p_value  # two rows: the efficiency as well


NOISE = (1.02, 1.12, 1.04, 1.16, 1.07, 1.10, 1.14, 1.05)
FLAT = (0.5,) * len(NOISE)


def test_a_verdict_among_many_rows_is_corrected_for_their_number(tmp_path: Path) -> None:
    """One method a little worse: told where it stands alone, not where twenty others moved."""
    draws = np.random.default_rng(0)
    others = {f"m{place}": np.exp(0.2 * draws.normal(0, 1, len(NOISE))) for place in range(20)}
    moved = {name: tuple(0.5 * factors) for name, factors in others.items()}
    worse = {"ef": tuple(0.5 * factor for factor in NOISE)}
    expected = Made({"ef": FLAT} | dict.fromkeys(others, FLAT))
    alone = rows_of(checked(tmp_path / "a", Made(worse | dict.fromkeys(others, FLAT)), expected))
    among = rows_of(checked(tmp_path / "b", Made(worse | moved), expected))
    assert alone["log ratio"].verdict == "worse"
    assert among["log ratio"].verdict == "same"
    assert "corrected for" in among["log ratio"].reason


def test_rows_that_cannot_be_beyond_the_tolerance_do_not_count(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    quiet = {f"m{place}": tuple(0.5 + 0.001 * draws.normal(0, 1, 8)) for place in range(20)}
    obtained = Made({"ef": tuple(0.5 * factor for factor in NOISE)} | quiet)
    found = checked(tmp_path, obtained, Made({"ef": FLAT} | dict.fromkeys(quiet, FLAT)))
    assert rows_of(found)["log ratio"].verdict == "worse"
    assert math.isnan(rows_of(found, "m0")["log ratio"].p_value)


def test_noise_alone_hardly_ever_fails_the_gate(tmp_path: Path) -> None:
    failed = 0
    for seed in range(12):
        draws = np.random.default_rng(seed)
        names = [f"m{place}" for place in range(20)]
        first, second = (
            Made({name: tuple(np.exp(0.3 * draws.normal(0, 1, 8))) for name in names}).write(
                tmp_path / f"{seed}-{side}"
            )
            for side in range(2)
        )
        failed += not check(baseline_of(first), baseline_of(second)).passed
    assert failed <= 1


@pytest.mark.parametrize(("factor", "verdict"), [(1.2, "not comparable"), (1.01, "same")])
def test_two_batches_decide_nothing(tmp_path: Path, factor: float, verdict: str) -> None:
    expected, obtained = Made({"ef": (0.5, 0.6)}), Made({"ef": (0.5 * factor, 0.6 * factor)})
    found = check(
        baseline_of(obtained.write(tmp_path / "obtained")),
        baseline_of(expected.write(tmp_path / "expected")),
    )
    row = rows_of(found)["log ratio"]
    assert row.verdict == verdict
    assert ("needs 3 batches" in row.reason) == (verdict != "same")


def test_worst_first(tmp_path: Path) -> None:
    flat = (0.5,) * 4
    names = ("same", "improved", "worse", "worst", "gone")
    expected = Made(dict.fromkeys(names, flat))
    ratios = {"same": 0.5, "improved": 0.3, "worse": 0.6, "worst": 5.0, "added": 0.5}
    obtained = Made({name: (ratio,) * 4 for name, ratio in ratios.items()})
    found = checked(tmp_path, obtained, expected)
    order = [row.method for row in found.comparisons if row.metric in ("log ratio", "")]
    assert order[:5] == ["worst", "worse", "gone", "added", "improved"]
    assert set(order[5:]) == {"same", "sgd"}
    assert not found.passed


@pytest.mark.parametrize(
    ("obtained", "expected", "verdict", "reason"),
    [
        ((0.5, math.inf, 0.7, 0.8), EXPECTED, "worse", "no descent: batch 1"),
        ((math.inf,) * 4, EXPECTED, "worse", "no descent: all 4 batches"),
        ((0.5, math.inf, 0.7, 0.8), (0.5, math.inf, 0.7, 0.8), "same", ""),
        (EXPECTED, (0.5, math.inf, 0.7, 0.8), "improved", ""),
        ((math.inf, 0.6, 0.7, 0.8), (0.5, math.inf, 0.7, 0.8), "worse", "no descent: batch 0"),
        ((math.nan, 0.6, 0.7, 0.8), EXPECTED, "not comparable", "undefined in one: batch 0"),
        (EXPECTED, (math.nan, 0.6, 0.7, 0.8), "not comparable", "undefined in one: batch 0"),
        ((math.nan, 0.6, 0.7, 0.8), (math.nan, 0.6, 0.7, 0.8), "same", "undefined in both: batch"),
        ((math.nan,) * 4, (math.nan,) * 4, "same", "undefined in both: all"),
    ],
)
def test_numbers_that_are_not_finite(
    tmp_path: Path,
    obtained: tuple[float, ...],
    expected: tuple[float, ...],
    verdict: str,
    reason: str,
) -> None:
    row = rows_of(checked(tmp_path, Made({"ef": obtained}), Made({"ef": expected})))["log ratio"]
    assert row.verdict == verdict
    assert row.reason.startswith(reason)
    assert bool(row.reason) == bool(reason)


@pytest.mark.parametrize(
    ("obtained", "expected", "passes"),
    [((1, 3), (), False), ((), (1, 3), True), ((1,), (1,), True), ((2,), (1,), False)],
)
def test_an_update_that_turns_uphill_is_worse(
    tmp_path: Path, obtained: tuple[int, ...], expected: tuple[int, ...], passes: bool
) -> None:
    found = checked(tmp_path, Made(uphill=obtained), Made(uphill=expected))
    assert found.passed == passes
    verdicts = {row.verdict for row in rows_of(found).values()}
    assert verdicts == ({"same"} if passes else {"worse"})


@pytest.mark.parametrize(
    ("obtained", "reason"),
    [
        (Made(settings={"seed": 1}), "seed 1 instead of 0"),
        (Made(settings={"batch_size": 9}), "batch size 9 instead of 8"),
        (Made(settings={"likelihood": "gaussian"}), "likelihood gaussian"),
        (Made(provenance={"task": "other"}), "task other instead of digits-mlp"),
        (Made(hashes={"first": "cd" * 32}), "SHA-256 cdcdcdcd instead of abababab"),
        (Made(checkpoints=("last",)), "not in the run"),
        (Made({"ief": EXPECTED}), "not scored in the run"),
        (Made(dampings=(1e-3,)), "not scored in the run"),
        (Made({"ef": EXPECTED[:3]}), "not in the run: batch 3"),
        (Made({"ef": EXPECTED[:2]}), "not in the run: batches 2, 3"),
        (Made(loss=0.51), "other samples, labels or model"),
        (
            Made(sgd_gamma=1.01 * SGD_GAMMA),
            "F, g or the floor is computed differently",
        ),
        (
            Made(sgd_gamma=0.99 * SGD_GAMMA),
            "F, g or the floor is computed differently",
        ),
    ],
)
def test_what_cannot_be_compared_fails_with_the_reason(
    tmp_path: Path, obtained: Made, reason: str
) -> None:
    found = checked(tmp_path, obtained, Made())
    assert not found.passed
    worst = found.comparisons[0]
    assert worst.verdict == "not comparable"
    assert reason in worst.reason
    assert "same" not in {row.verdict for row in found.comparisons if row.method in (ALL, "ef")}


@pytest.mark.parametrize(("change", "passes"), [(1.0, True), (1.01, False), (0.99, False)])
def test_sgd_need_not_be_scored(tmp_path: Path, change: float, passes: bool) -> None:
    obtained = Made(sgd_gamma=change * SGD_GAMMA, sgd=False)
    found = checked(tmp_path, obtained, Made(sgd=False))
    assert found.passed == passes
    if not passes:
        assert [(row.method, row.metric) for row in found.comparisons] == [("sgd", "efficiency")]


def test_what_the_baseline_lacks_is_new_and_passes(tmp_path: Path) -> None:
    more = Made({"ef": (*EXPECTED, 0.9), "ief": EXPECTED}, checkpoints=("first", "last"))
    found = checked(tmp_path, more, Made())
    assert found.passed
    new = [(row.checkpoint, row.method) for row in found.comparisons if row.verdict == "new"]
    assert sorted(new) == [("first", "ief"), ("last", ALL)]


def test_other_precision_and_versions_are_notes(tmp_path: Path) -> None:
    other = Made(settings={"dtype": "float64"}, provenance={"versions": {"torch": "2.6.0"}})
    found = checked(tmp_path, other, Made())
    assert found.passed
    assert found.notes == ("dtype float64 instead of float32", "torch 2.6.0 instead of 2.13.0")


def test_long_lists_of_batches_are_cut(tmp_path: Path) -> None:
    expected = Made({"ef": (0.5,) * 9})
    obtained = Made({"ef": (0.5,) * 9}, uphill=(0, 1, 2, 3, 4, 5, 6))
    row = rows_of(checked(tmp_path, obtained, expected))["efficiency"]
    assert row.reason == "no descent: batches 0, 1, 2, 3, 4 and 2 more"
