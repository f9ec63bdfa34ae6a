"""A study on many ranks, simulated event by event with the blocks that ranks really get.

Ranks start, read what a start reads, take blocks from the store's counter, load checkpoints and
score units; the store and the shared folder serve one request after another. A unit's time is drawn
from a lognormal distribution with a seed that is given.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass

from evalkit.study.blocks import blocks_of

WORK = ("scoring", "starting", "loading", "writing", "asking", "waiting")
"""What ranks spend time on."""


@dataclass(frozen=True)
class Costs:
    """What was measured, and what is assumed of the folder that ranks share.

    Attributes:
        start: seconds from the start of a process to its first unit, without reading.
        request: seconds of the store for one request, and of the rank that waits for it.
        put: seconds to make the rows of a unit durable.
        hashing: bytes in a second.
        loading: bytes in a second, from the memory of the machine into the model.
        spread: standard deviation of the logarithm of a unit's time.
        folder: bytes in a second that the shared folder serves to all ranks together.
    """

    start: float
    request: float
    put: float
    hashing: float
    loading: float
    spread: float
    folder: float = 10e9


@dataclass(frozen=True)
class Load:
    """A study.

    Attributes:
        name: as the table shows it.
        unit: mean seconds of a unit.
        checkpoint: bytes of one.
        base: bytes that every rank reads at its start, beside checkpoints.
        checkpoints: how many there are.
        batches: of each.
    """

    name: str
    unit: float
    checkpoint: float
    base: float = 0.0
    checkpoints: int = 7
    batches: int = 100


@dataclass(frozen=True)
class Simulated:
    """How a study went.

    Attributes:
        seconds: from its start to its end.
        spent: seconds of all ranks by what they did: asking is that of the store, waiting that at
            the end.
    """

    seconds: float
    spent: dict[str, float]


class _Server:
    """Serves one request after another."""

    def __init__(self) -> None:
        self.free = 0.0

    def served(self, now: float, seconds: float) -> float:
        """Return when a request of now is answered."""
        self.free = max(self.free, now) + seconds
        return self.free


def simulated(load: Load, ranks: int, costs: Costs, seed: int) -> Simulated:
    """Return how a study goes on some ranks.

    Args:
        load: the study.
        ranks: how many there are; one is a process alone, which asks no store.
        costs: of everything.
        seed: of the times of units.
    """
    names = [str(c) for c in range(load.checkpoints) for _ in range(load.batches)]
    times = _unit_times(load, costs, seed)
    blocks = blocks_of(names, ranks)
    store, folder = _Server(), _Server()
    spent: dict[str, float] = dict.fromkeys(WORK, 0.0)
    request = costs.request if ranks > 1 else 0.0
    share = math.ceil(load.checkpoints / ranks)  # each rank verifies its part
    hashed = load.checkpoints * load.checkpoint
    # When, who, what it does then, its block and its place in it; servers are asked in this order.
    queue = [(0.0, rank, "start", 0, 0) for rank in range(ranks)]
    held, ends, taken = [""] * ranks, [0.0] * ranks, 0
    while queue:
        now, rank, what, block, place = heapq.heappop(queue)
        if what == "start":
            read = folder.served(now, (hashed + load.base) / costs.folder) + hashed / costs.hashing
            ready = read + costs.start + share * load.checkpoint / costs.loading
            spent["starting"] += ready - now
            heapq.heappush(queue, (ready, rank, "ask", 0, 0))
        elif what == "ask":
            asked = store.served(now, 2 * request)  # for the counter, and for the block
            spent["asking"] += asked - now
            if taken == len(blocks):
                ends[rank] = asked
                continue
            name = names[blocks[taken].start]
            doing = "score" if name == held[rank] else "load"
            held[rank] = name
            heapq.heappush(queue, (asked, rank, doing, taken, 0))
            taken += 1
        elif what == "load":
            ready = folder.served(now, load.checkpoint / costs.folder)
            ready += load.checkpoint / costs.loading
            spent["loading"] += ready - now
            heapq.heappush(queue, (ready, rank, "score", block, 0))
        elif what == "score":
            seconds = times[blocks[block][place]]
            spent["scoring"] += seconds
            spent["writing"] += costs.put
            heapq.heappush(queue, (now + seconds + costs.put, rank, "tell", block, place + 1))
        else:
            told = store.served(now, 2 * request)
            spent["asking"] += told - now
            then = "score" if place < len(blocks[block]) else "ask"
            heapq.heappush(queue, (told, rank, then, block, place))
    last = max(ends)
    spent["waiting"] = sum(last - end for end in ends)
    return Simulated(last, spent)


def _unit_times(load: Load, costs: Costs, seed: int) -> list[float]:
    generator = random.Random(seed)
    centre = math.log(load.unit) - costs.spread**2 / 2
    count = load.checkpoints * load.batches
    return [generator.lognormvariate(centre, costs.spread) for _ in range(count)]


def dealt(load: Load, studies: int, ranks: int, costs: Costs, side_by_side: bool) -> Simulated:
    """Return how several studies go that are alike.

    Args:
        load: each of them.
        studies: how many.
        ranks: in all.
        costs: of everything.
        side_by_side: whether ranks are dealt to the studies, where there are enough; otherwise all
            ranks score one study after another.
    """
    groups = min(studies, ranks) if side_by_side else 1
    ends, spent = [0.0] * groups, dict.fromkeys(WORK, 0.0)
    sizes = [ranks // groups + (group < ranks % groups) for group in range(groups)]
    for study in range(studies):
        group = min(range(groups), key=ends.__getitem__)
        found = simulated(load, sizes[group], costs, seed=study)
        ends[group] += found.seconds
        for name, seconds in found.spent.items():
            spent[name] += seconds
    last = max(ends)
    spent["waiting"] += sum((last - end) * size for end, size in zip(ends, sizes, strict=True))
    return Simulated(last, spent)
