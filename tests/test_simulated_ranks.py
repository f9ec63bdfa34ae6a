"""The simulation of many ranks: time adds up, and what is simple comes out as by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.benchmarks.ranks import Start, as_section, many
from tests.benchmarks.simulated_ranks import Costs, Load, dealt, simulated

FREE = Costs(0.0, 0.0, 0.0, 1e30, 1e30, spread=0.0, folder=1e30)
DEAR = Costs(5.0, 1e-4, 1e-2, 1e9, 2e9, spread=0.3, folder=1e10)
LOAD = Load("a study", unit=2.0, checkpoint=1e9, base=1e9)


@pytest.mark.parametrize("ranks", [1, 2, 7, 100])
def test_ranks_that_cost_nothing_share_the_time(ranks: int) -> None:
    found = simulated(LOAD, ranks, FREE, seed=0)
    assert found.seconds == pytest.approx(2.0 * -(-700 // ranks), abs=2.0)


@pytest.mark.parametrize("ranks", [1, 3, 40])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_the_time_of_all_ranks_is_told(ranks: int, side_by_side: bool) -> None:
    found = dealt(LOAD, 5, ranks, DEAR, side_by_side)
    assert sum(found.spent.values()) == pytest.approx(ranks * found.seconds)
    assert min(found.spent.values()) >= 0


def test_a_process_alone_is_the_sum_of_its_parts() -> None:
    costs = replace(DEAR, spread=0.0)
    found = simulated(LOAD, 1, costs, seed=0)
    read = 8e9 / 1e10 + 7e9 / 1e9 + 7e9 / 2e9  # from the folder, hashed, verified
    loaded = 7 * (1e9 / 1e10 + 1e9 / 2e9)
    assert found.seconds == pytest.approx(5.0 + read + loaded + 700 * 2.01)
    assert found.spent["asking"] == found.spent["waiting"] == 0


def test_a_store_that_is_slow_serves_one_after_another() -> None:
    costs = replace(FREE, request=0.05)
    assert simulated(LOAD, 100, costs, seed=0).seconds >= 0.05 * 2 * 700


def test_a_seed_gives_the_same_times() -> None:
    assert simulated(LOAD, 9, DEAR, seed=4) == simulated(LOAD, 9, DEAR, seed=4)
    assert simulated(LOAD, 9, DEAR, seed=4) != simulated(LOAD, 9, DEAR, seed=5)


def test_the_table_has_a_row_for_each_number_of_ranks() -> None:
    text = many(DEAR, ranks=(1, 4), studies=2)
    assert text.startswith("## Many ranks, simulated\n")
    assert text.count("\n| 4 |") == text.count("\n| 1 |") == 3


def test_two_ranks_are_judged_without_their_starts() -> None:
    turn = {
        (1, False): Start(110.0, 108.0),
        (1, True): Start(10.0, 8.0),
        (2, False): Start(72.0, 124.0),
        (2, True): Start(12.0, 20.0),
    }
    rows = as_section([turn, turn], 4).splitlines()[-4:]
    assert rows[0] == "| from start to end | 110 | 72 | 0.655 |  |"
    assert rows[1] == "| scoring alone | 100 | 60 | 0.6 | **missed** |"
    assert rows[3].endswith("| 100 | 52 | 0.52 | reached |")
