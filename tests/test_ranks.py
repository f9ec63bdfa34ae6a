"""Units handed out to ranks: each once, in blocks of a checkpoint, whoever dies or is slow."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch.distributed as dist

from evalkit.errors import EvalkitError
from evalkit.launch import Launch, Shard, given_threads, is_first, launched, parse_shard
from evalkit.storage.rows import Cell
from evalkit.study.blocks import SHARE, blocks_of, shard_of
from evalkit.study.plan import Unit
from evalkit.study.ranks import Ranks

CELLS = tuple(Cell(name, step, 0.0, batch) for step, name in enumerate("abc") for batch in range(8))
UNITS = tuple(Unit(cell, frozenset()) for cell in CELLS)
HERE = Launch(0, 2, 0, 2, 0, "localhost", 0, True)
ENVIRONMENT = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "one", "MASTER_PORT": "29500"}


STARTED: list[Ranks] = []


@pytest.fixture
def store() -> Iterator[dist.Store]:
    yield dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    while STARTED:
        stop(STARTED.pop())


def rank(store: dist.Store, number: int, world: int = 2, dead: float = 30.0) -> Ranks:
    """Return a rank with a connection of its own."""
    client = dist.TCPStore("localhost", store.port, is_master=False, wait_for_workers=False)
    ranks = Ranks(replace(HERE, rank=number, world=world), client, beat=0.01, dead=dead)
    STARTED.append(ranks)
    return ranks


def taken(ranks: Ranks, units: Sequence[Unit] = UNITS) -> list[Unit]:
    return list(ranks.handed_out(CELLS, units))


def stop(ranks: Ranks) -> None:
    """Let a rank be killed: no sign of life, nothing said."""
    ranks._ended.set()
    ranks._heart.join()


def test_each_unit_goes_to_one_rank(store: dist.Store) -> None:
    found: dict[int, list[Unit]] = {}

    def run(number: int) -> None:
        ranks = rank(store, number, 4)
        found[number] = taken(ranks)
        ranks.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(unit for units in found.values() for unit in units) == Counter(UNITS)
    for units in found.values():  # checkpoints in their order, each in a row: loaded once
        names = [unit.cell.checkpoint for unit in units]
        assert names == sorted(names)


def test_a_rank_alone_gets_all_in_order_and_hears_how_many(store: dist.Store) -> None:
    ranks, planned = rank(store, 0), []
    assert list(ranks.handed_out(CELLS, UNITS, planned.append)) == list(UNITS)
    assert planned == [len(UNITS)]
    assert ranks.done == len(UNITS)


def test_a_slow_rank_holds_up_nobody(store: dist.Store) -> None:
    slow, other = rank(store, 0), rank(store, 1)
    units = slow.handed_out(CELLS, UNITS)
    held, waits = next(units), 0
    found: list[Unit] = []

    def on_wait() -> None:
        nonlocal waits
        waits += 1
        if waits == 3:  # all that nobody holds is done by now
            found.extend(units)

    mine = list(other.handed_out(CELLS, UNITS, on_wait=on_wait))
    assert Counter([held, *mine, *found]) == Counter(UNITS)
    size = len(blocks_of([cell.checkpoint for cell in CELLS], 2)[0])
    assert len(found) == size - 1  # its block alone


@pytest.mark.parametrize("stored", [0, 2])
def test_a_dead_rank_is_gone_on_with_where_it_stopped(store: dist.Store, stored: int) -> None:
    dead, other = rank(store, 1), rank(store, 0, dead=0.2)
    units = dead.handed_out(CELLS, UNITS)
    before = [next(units) for _ in range(stored + 1)]
    stop(dead)
    mine = taken(other)
    assert Counter([*before[:stored], *mine]) == Counter(UNITS)
    assert other.done == len(UNITS)


def test_so_is_one_that_died_before_it_said_what_it_took(store: dist.Store) -> None:
    dead, other = rank(store, 1), rank(store, 0)
    dead._store.add("next", 1)
    stop(dead)
    assert Counter(taken(other)) == Counter(UNITS)


def test_a_rank_that_was_silent_loses_its_block_alone(store: dist.Store) -> None:
    silent, other = rank(store, 1), rank(store, 0, dead=0.2)
    units = silent.handed_out(CELLS, UNITS)
    held = next(units)
    stop(silent)
    mine = taken(other)
    assert held in mine
    assert list(units) == []  # everything is done by now
    assert Counter(mine) == Counter(UNITS)


def test_ranks_go_by_the_list_of_the_first(store: dist.Store) -> None:
    """A rank that comes late finds units finished that others have been handed out."""
    early, late = rank(store, 0), rank(store, 1)
    units = early.handed_out(CELLS, UNITS)
    first = next(units)
    assert next(units) != first
    mine: list[Unit] = []
    rest: Iterator[Unit] = late.handed_out(CELLS, UNITS[1:], on_wait=lambda: mine.extend(units))
    assert Counter([*rest, *mine]) == Counter(UNITS[2:])


def test_ranks_of_other_studies_are_refused(store: dist.Store) -> None:
    assert next(rank(store, 0).handed_out(CELLS, UNITS)) == UNITS[0]
    with pytest.raises(EvalkitError, match="same checkpoints and batches"):
        next(rank(store, 1).handed_out(CELLS[:3], UNITS[:3]))


def test_a_restart_reads_nothing_of_the_start_before(store: dist.Store) -> None:
    assert taken(rank(store, 0)) == list(UNITS)
    again = Ranks(replace(HERE, restart=1), store, beat=0.01)
    assert taken(again) == list(UNITS)


def test_a_store_that_is_gone_ends_the_units() -> None:
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    ranks = rank(server, 1)
    units = ranks.handed_out(CELLS, UNITS)
    next(units)
    del server
    assert list(units) == []
    assert ranks.is_lost
    ranks.close()


def test_one_rank_says_what_all_would_say(store: dist.Store) -> None:
    one, other = rank(store, 0), rank(store, 1)
    assert [one.first_to("x"), other.first_to("x"), other.first_to("y")] == [True, False, True]


def test_rank_0_ends_last(store: dist.Store) -> None:
    """It may serve the store, and its exit status stands for all."""
    first, other = rank(store, 0), rank(store, 1)
    ended = threading.Thread(target=first.wait_for_others)
    ended.start()
    ended.join(0.2)
    assert ended.is_alive()
    other.wait_for_others()  # nobody waits for rank 0
    other.close()
    ended.join()


def test_it_does_not_wait_for_the_dead(store: dist.Store) -> None:
    first, other = rank(store, 0, dead=0.1), rank(store, 1)
    stop(other)
    first.wait_for_others()


def test_one_rank_starts_over_and_others_wait(store: dist.Store) -> None:
    first, other = rank(store, 0), rank(store, 1)
    found: list[bool] = []
    waiting = threading.Thread(target=lambda: found.append(other.starts_over()))
    waiting.start()
    assert first.starts_over()
    assert not found
    first.has_started_over()
    waiting.join()
    assert found == [False]
    again = Ranks(replace(HERE, restart=1), store, beat=0.01)
    STARTED.append(again)
    assert not again.starts_over()


def test_blocks_hold_a_checkpoint_each_and_shrink() -> None:
    names = [cell.checkpoint for cell in CELLS]
    for ranks in (1, 2, 3, 50):
        blocks = blocks_of(names, ranks)
        assert [place for block in blocks for place in block] == list(range(len(names)))
        assert all(len({names[place] for place in block}) == 1 for block in blocks)
        for block in blocks:
            left = len(names) - block.start
            assert len(block) <= -(-left // (SHARE * ranks))
    assert len(blocks_of(names, 1)[-1]) == 1
    assert blocks_of([], 2) == ()


@pytest.mark.parametrize("count", [1, 2, 5, 24, 30])
def test_shards_share_the_cells(count: int) -> None:
    shards = [shard_of(CELLS, Shard(number, count)) for number in range(1, count + 1)]
    assert sum(shards, ()) == CELLS
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("0/4", "from 1/4 to 4/4"),
        ("5/4", "from 1/4 to 4/4"),
        ("1/0", "at least one"),
        ("a/b", "as i/k"),
        ("3", "as i/k"),
        ("-1/4", "as i/k"),
        ("/4", "as i/k"),
        ("1/2/3", "as i/k"),
        ("²/4", "as i/k"),
    ],
)
def test_shards_that_are_none(text: str, match: str) -> None:
    with pytest.raises(EvalkitError, match=match):
        parse_shard(text)


def test_a_shard_is_read() -> None:
    assert parse_shard(" 2/8 ") == Shard(2, 8)
    assert parse_shard("2/8").writer == "shard-2-of-8"


def test_where_torchrun_has_placed_a_process() -> None:
    assert launched({}) is None
    assert launched({**ENVIRONMENT, "WORLD_SIZE": "1"}) is None
    found = launched({**ENVIRONMENT, "TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert found == Launch(1, 4, 1, 1, 0, "one", 29500, True)
    assert found.writer == "rank-0001"
    assert not is_first(ENVIRONMENT)
    assert is_first({**ENVIRONMENT, "RANK": "0"})
    assert is_first({"RANK": "1"})  # of something else
    with pytest.raises(EvalkitError, match="variable WORLD_SIZE"):
        launched({**ENVIRONMENT, "WORLD_SIZE": "four"})


def test_threads_are_shared_where_the_user_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    assert given_threads(HERE, {}) == 4
    assert given_threads(HERE, {"OMP_NUM_THREADS": "3"}) is None
    monkeypatch.setattr("evalkit.launch._said_before", lambda: False)
    assert given_threads(HERE, {"OMP_NUM_THREADS": "1"}) == 4  # of torchrun itself
    monkeypatch.setattr("evalkit.launch._said_before", lambda: True)
    assert given_threads(HERE, {"OMP_NUM_THREADS": "1"}) is None
