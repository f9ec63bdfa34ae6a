"""Ways to kill: a process alone, one of several ranks, shards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.kills.starts import Starts, children

PATIENCE = 300.0
"""Seconds after which a start that does not end is a fault."""


@dataclass
class Outcome:
    """What became of the runs of one way.

    Attributes:
        way: how it is called.
        kills: processes that were killed.
        runs: that were finished.
        moments: kills by what the run was at.
        faults: what differs, or was lost.
    """

    way: str
    kills: int = 0
    runs: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


Kill = Callable[[str], bool]
"""Starts processes on a run and kills one of them; false where they had ended before."""


def killed_alone(starts: Starts, kills: int, draw: random.Random, seconds: float) -> Outcome:
    """Kill a process, and with it those that it has forked."""

    def kill(run: str) -> bool:
        process = starts.alone(run, draw.choice((1, 2)))
        return _killed(process, [process.pid], draw.uniform(0.3, 1.2) * seconds)

    def finish(run: str) -> None:
        _ended([starts.alone(run, 1)])

    return _repeated("alone", starts, kills, kill, finish)


def killed_ranks(starts: Starts, kills: int, draw: random.Random, seconds: float) -> Outcome:
    """Kill one of several ranks, of torchrun or of a launcher that lets the others go on."""

    def kill(run: str) -> bool:
        count = draw.choice((2, 2, 3))
        if draw.random() < 0.5:
            agent = starts.torchrun(run, count)
            _sleep(agent, draw.uniform(0.8, 1.8) * seconds)
            ranks = children(agent.pid)
            done = bool(ranks) and _killed(agent, [draw.choice(ranks)], 0.0)
            _ended([agent])
            return done
        ranks_alone = starts.ranks(run, count)
        chosen = draw.randrange(count)
        victim = ranks_alone[chosen]
        done = _killed(victim, [victim.pid], draw.uniform(0.5, 1.4) * seconds)
        _ended(ranks_alone)
        if done and chosen and not starts.is_finished(run):
            raise AssertionError(f"the ranks that were left have not finished {run}")
        return done

    def finish(run: str) -> None:
        _ended([starts.torchrun(run, draw.choice((2, 3)))])

    return _repeated("ranks", starts, kills, kill, finish)


def killed_shards(starts: Starts, kills: int, draw: random.Random, seconds: float) -> Outcome:
    """Kill one of three shards; the others go on."""

    def several(run: str) -> list[subprocess.Popen[str]]:
        return [starts.alone(run, 1, "--shard", f"{number}/3") for number in (1, 2, 3)]

    def kill(run: str) -> bool:
        shards = several(run)
        victim = draw.choice(shards)
        done = _killed(victim, [victim.pid], draw.uniform(0.5, 1.4) * seconds)
        _ended(shards)
        return done

    return _repeated("shards", starts, kills, kill, lambda run: _ended(several(run)))


WAYS: dict[str, Callable[[Starts, int, random.Random, float], Outcome]] = {
    "alone": killed_alone,
    "ranks": killed_ranks,
    "shards": killed_shards,
}


def _repeated(
    way: str, starts: Starts, kills: int, kill: Kill, finish: Callable[[str], None]
) -> Outcome:
    """Kill until there were enough, run after run, and compare each that is finished."""
    outcome = Outcome(way)
    while outcome.kills < kills and not outcome.faults:
        run = f"{way}-{outcome.runs}"
        before: set[tuple[str, int]] = set()
        while outcome.kills < kills and not starts.is_finished(run):
            try:
                if kill(run):
                    outcome.kills += 1
                    outcome.moments[_moment(starts, run)] += 1
            except AssertionError as error:
                outcome.faults.append(str(error))
                break
            now = starts.cells(run)
            if not before <= now:
                outcome.faults.append(f"{run} has lost {len(before - now)} cells")
            before = now
            print(f"{run}: {outcome.kills} kills, {len(now)} batches", flush=True)
        # What is killed once the tables are whole leaves files of locks to the next start.
        if not starts.is_finished(run) or starts.left(run):
            finish(run)
        outcome.runs += 1
        fault = starts.fault(run)
        outcome.faults += [fault] if fault else []
    return outcome


def _moment(starts: Starts, run: str) -> str:
    done = len(starts.cells(run))
    if starts.is_finished(run):
        return "finished by others"
    return "while scoring" if done else "before the first batch was kept"


def _killed(process: subprocess.Popen[str], pids: Sequence[int], seconds: float) -> bool:
    """Kill processes after some time, and return whether the first of them still ran."""
    _sleep(process, seconds)
    if process.poll() is not None:
        return False
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return True


def _sleep(process: subprocess.Popen[str], seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _ended(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until processes have ended.

    Raises:
        AssertionError: one hangs.
    """
    until = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"process {process.args} hangs") from None
