"""The units of a study handed out to the processes that torchrun has started, and to shards.

Ranks share nothing but a RUN folder and torch's key-value store (TCPStore). There is no process
group and no collective, so that no rank waits for another while there are units left:

- ``plan``: the cells that were left when the first rank asked; all ranks go by that list.
- ``next``: a counter; who raises it from n takes block n of the list.
- ``block/n``: who has the block, and how many of its units are stored; changed by compare-and-set.
- ``beat/who``: a counter that a thread of that rank raises while the process lives.

A block is a run of units of one checkpoint; blocks follow the plan and shrink towards its end. So a
rank meets checkpoints in their order, loads each at most once, and ends at most about a unit later
than the others. A rank that finds the counter exhausted watches the blocks that are not done. One
whose rank is dead, since its counter has not moved for so long by the watcher's own clock, it takes
from where that rank stopped. A rank that was silent for too long loses its block and goes on with
others: what both have scored is the same, and the RUN keeps it once.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from evalkit.errors import EvalkitError
from evalkit.launch import Launch
from evalkit.storage.rows import Cell
from evalkit.study.blocks import blocks_of
from evalkit.study.plan import Unit

BEAT_SECONDS = 2.0
"""Between two signs of life."""

DEAD_SECONDS = 30.0
"""Without a sign of life, by the clock of who watches, after which a rank counts as dead."""

CONNECT_SECONDS = 120.0
"""That a rank waits for the store at its start: others may still be loading torch."""

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 2.0
"""Seconds between two looks at the blocks of others, growing from one to the other."""

_DONE = "done"


class Ranks:
    """A rank among those that share a study, and what it hears of the others.

    Args:
        launch: where torchrun has placed this process.
        store: that all ranks are connected to.
        beat: seconds between two signs of life.
        dead: seconds without one after which a rank counts as dead.

    Attributes:
        done: units that all ranks together have finished, as last heard.
        is_lost: whether the store is gone; nothing is handed out after that.
    """

    def __init__(
        self,
        launch: Launch,
        store: dist.Store,
        beat: float = BEAT_SECONDS,
        dead: float = DEAD_SECONDS,
    ) -> None:
        self.launch = launch
        self.done = 0
        self.is_lost = False
        # Keys of the processes before a restart are not read; those of a restart that torchrun does
        # not count belong to processes that no longer give signs of life.
        self._store = dist.PrefixStore(f"evalkit/{launch.world}/{launch.restart}", store)
        self._name = f"{launch.rank}-{uuid.uuid4().hex[:12]}"
        self._beat, self._dead = beat, dead
        self._checkpoints: tuple[str, ...] = ()
        self._heard: dict[str, tuple[int, float]] = {}
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._live, daemon=True, name="evalkit-rank")
        self._store.add(_beat_of(self._name), 1)
        self._heart.start()

    @property
    def writer(self) -> str:
        """The name of what this rank writes in a RUN."""
        return self.launch.writer

    @property
    def leads(self) -> bool:
        """Whether this rank shows progress and results for all."""
        return self.launch.rank == 0

    def first_to(self, what: str) -> bool:
        """Return whether this rank is the first to ask for something: said or done once."""
        key = f"first/{hashlib.sha256(what.encode()).hexdigest()}"
        try:
            return self._swap(key, "", self._name)
        except dist.DistError:
            return True

    def starts_over(self) -> bool:
        """Return whether this rank is to set an earlier run aside; others wait until it has.

        Raises:
            EvalkitError: rank 0 does not do it.
        """
        if self.launch.restart:
            return False  # done, or it would set aside what this start has scored
        if self.leads:
            return True
        until = time.monotonic() + CONNECT_SECONDS
        while not self._store.check(["fresh"]):
            if time.monotonic() > until:
                raise EvalkitError(
                    "expected rank 0 to set the earlier run aside, found no sign of it within "
                    f"{CONNECT_SECONDS:.0f} s; give the same command without `fresh`"
                )
            time.sleep(FIRST_PAUSE)
        return False

    def has_started_over(self) -> None:
        """Tell the other ranks that an earlier run is set aside."""
        self._store.set("fresh", _DONE)

    def handed_out(
        self,
        cells: Sequence[Cell],
        units: Sequence[Unit],
        on_plan: Callable[[int], None] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> Iterator[Unit]:
        """Yield the units of this rank until those of all ranks are finished, or the store is gone.

        A unit is finished when the next one is asked for.

        Args:
            cells: of the study, the same on every rank.
            units: that this rank knows to be left. Where another has seen more of them, they were
                finished since.
            on_plan: called with the number of units that ranks share.
            on_wait: called now and then while others are at the last units.

        Raises:
            EvalkitError: ranks were started on different studies.
        """
        try:
            places = self._agreed(cells, units)
            if on_plan is not None:
                on_plan(len(places))
            blocks = blocks_of([cells[place].checkpoint for place in places], self.launch.world)
            self._checkpoints = tuple(cells[places[block.start]].checkpoint for block in blocks)
            left = {unit.cell: unit for unit in units}
            listed = [left.get(cells[place]) for place in places]
            while (number := self._store.add("next", 1) - 1) < len(blocks):
                yield from self._worked(number, "", [listed[place] for place in blocks[number]])
            yield from self._left_over(blocks, listed, on_wait)
        except dist.DistError:  # of this method's own calls: a caller's errors do not come here
            self.is_lost = True

    def upcoming(self) -> str | None:
        """Return the checkpoint of the block that this rank is likely to get next, None for none.

        Until then the others have taken one each.
        """
        try:
            at = self._store.add("next", 0) + self.launch.world - 1
        except dist.DistError:
            return None
        return self._checkpoints[at] if at < len(self._checkpoints) else None

    def _agreed(self, cells: Sequence[Cell], units: Sequence[Unit]) -> tuple[int, ...]:
        """Return the places of the cells that were left when the first rank asked."""
        known = {unit.cell for unit in units}
        own = "".join("01"[cell in known] for cell in cells)
        agreed = self._store.compare_set("plan", "", f"{_study_hash(cells)} {own}").decode()
        study, _, left = agreed.partition(" ")
        if study != _study_hash(cells):
            raise EvalkitError(
                "expected all ranks to score the same checkpoints and batches, found that another "
                "rank has others; start all with one command, on a folder that all of them see"
            )
        return tuple(place for place, flag in enumerate(left) if flag == "1")

    def _worked(self, number: int, before: str, units: Sequence[Unit | None]) -> Iterator[Unit]:
        """Yield the units of a block that are not finished, if this rank gets it.

        Args:
            number: of the block.
            before: what the store says of it; empty where nobody has had it.
            units: of the block, None where this rank knows of a unit that it is finished.
        """
        key, first = _block(number), _finished(before)
        state = f"{self._name} {first}"
        if not self._swap(key, before, state):
            return
        for done, unit in enumerate(units[first:], start=first + 1):
            if unit is not None:
                yield unit
            after = _DONE if done == len(units) else f"{self._name} {done}"
            if not self._swap(key, state, after):
                return  # silent for too long: another rank has it
            state = after
            self.done = self._store.add("done", 1)

    def _left_over(
        self,
        blocks: Sequence[range],
        listed: Sequence[Unit | None],
        on_wait: Callable[[], None] | None,
    ) -> Iterator[Unit]:
        """Yield what dead ranks leave, until every block is done."""
        pause, states = FIRST_PAUSE, self._states(range(len(blocks)))
        while states:
            dead = self._dead_of({_holder(state) for state in states.values()})
            left = [number for number, state in states.items() if _holder(state) in dead]
            for number in left:
                units = [listed[place] for place in blocks[number]]
                yield from self._worked(number, states[number], units)
            if not left:
                if on_wait is not None:
                    on_wait()
                time.sleep(pause)
            pause = FIRST_PAUSE if left else min(1.5 * pause, LONGEST_PAUSE, self._beat)
            states = self._states(states)
        self.done = self._store.add("done", 0)

    def _states(self, numbers: Sequence[int] | dict[int, str]) -> dict[int, str]:
        """Return what the store says of those of some blocks that are not done."""
        keys = {number: _block(number) for number in numbers}
        # Reading a key that is missing would wait for it. One is, where a rank ended between
        # raising the counter and saying that it has the block.
        if keys and not self._store.check(list(keys.values())):
            there = {n: key for n, key in keys.items() if self._store.check([key])}
        else:
            there = keys
        found = self._store.multi_get(list(there.values())) if there else []
        states = dict.fromkeys(keys, "") | {
            n: value.decode() for n, value in zip(there, found, strict=True)
        }
        return {number: state for number, state in states.items() if state != _DONE}

    def _dead_of(self, names: set[str]) -> set[str]:
        """Return those of some ranks that give no sign of life; nobody is one, and so is this one,
        which looks after blocks only where it has none."""
        others = sorted(names - {"", self._name})
        # Each has given a sign before it took a block, so that none of these keys is missing.
        heard = self._store.multi_get([_beat_of(name) for name in others]) if others else []
        dead, now = names & {"", self._name}, time.monotonic()
        for name, beats in zip(others, map(int, heard), strict=True):
            before, since = self._heard.get(name, (-1, now))
            if beats != before:
                self._heard[name] = beats, now
            elif now - since > self._dead:
                dead.add(name)
        return dead

    def _swap(self, key: str, before: str, after: str) -> bool:
        return bool(self._store.compare_set(key, before, after).decode() == after)

    def _live(self) -> None:
        """Give signs of life until the end, and hear how far all ranks are."""
        with suppress(dist.DistError):  # noticed by whoever asks for the next unit
            while not self._ended.wait(self._beat):
                self._store.add(_beat_of(self._name), 1)
                if not self.leads:
                    self._store.add("beats", 1)
                else:
                    self.done = max(self.done, self._store.add("done", 0))

    def close(self) -> None:
        """Give no more signs of life."""
        self._ended.set()
        self._heart.join()
        with suppress(dist.DistError):
            self._store.add("ended", 1)

    def wait_for_others(self) -> None:
        """Wait until all other ranks have ended or give no sign of life.

        Rank 0 ends last: it may serve the store, and torchrun ends all others where its exit status
        says that batches have failed.
        """
        if not self.leads:
            return
        with suppress(dist.DistError):
            ended, beats, since = 0, -1, time.monotonic()
            while ended < self.launch.world - 1 and time.monotonic() - since < self._dead:
                time.sleep(min(self._beat, FIRST_PAUSE))
                ended, heard = self._store.add("ended", 0), self._store.add("beats", 0)
                if heard != beats:
                    beats, since = heard, time.monotonic()


@contextmanager
def joined(launch: Launch) -> Iterator[Ranks]:
    """Provide the ranks that torchrun has started, this process among them.

    Raises:
        EvalkitError: the store of torchrun cannot be reached.
    """
    serves = launch.rank == 0 and not launch.is_served
    try:
        store = dist.TCPStore(
            launch.host,
            launch.port,
            is_master=serves,
            timeout=timedelta(seconds=CONNECT_SECONDS),
            wait_for_workers=False,
        )
        ranks = Ranks(launch, store)
    except dist.DistError as error:
        raise EvalkitError(
            f"expected the store of torchrun at {launch.host}:{launch.port}, found that rank "
            f"{launch.rank} cannot reach it; start all ranks with torchrun, or unset RANK"
        ) from error
    try:
        yield ranks
        ranks.wait_for_others()
    finally:
        ranks.close()


def _block(number: int) -> str:
    return f"block/{number}"


def _beat_of(name: str) -> str:
    return f"beat/{name}"


def _holder(state: str) -> str:
    """Return who has a block by what the store says of it, empty where nobody has."""
    return state.partition(" ")[0]


def _finished(state: str) -> int:
    """Return how many units of a block are finished by what the store says of it."""
    return int(state.partition(" ")[2] or 0)


def _study_hash(cells: Sequence[Cell]) -> str:
    return hashlib.sha256("\n".join(map(repr, cells)).encode()).hexdigest()[:16]
