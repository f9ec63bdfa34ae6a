"""Kill processes that score, at random moments, and compare the tables in the end.

``python -m tests.kills --alone 20 --ranks 20 --shards 10 --seed 0`` kills (-9) a process alone and
the processes that it has forked, one of several ranks, and shards, so many times each. Starts go on
with the same RUN until it is finished; then the next RUN begins. Every finished RUN has to hold the
bytes of one that nothing has interrupted, and no start may lose a cell that was finished.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from evalkit.storage import locks
from tests.kills.boundaries import check_errors, check_kills, finish, halves, whole_tables
from tests.kills.starts import Starts
from tests.kills.ways import WAYS, Outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill as often as is asked for; the exit status is 1 where a table differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    for name in WAYS:
        parser.add_argument(f"--{name}", type=int, default=0, metavar="KILLS")
    parser.add_argument("--boundaries", action="store_true", help="every change of a file, too")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.boundaries:
        check_boundaries()
    if not any(getattr(given, name) for name in WAYS):
        return 0
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        starts = Starts(Path(folder))
        seconds = starts.write_whole()
        print(f"uninterrupted: {len(starts.cells('whole'))} batches in {seconds:.1f} s", flush=True)
        outcomes = [
            WAYS[name](starts, getattr(given, name), draw, seconds)
            for name in WAYS
            if getattr(given, name)
        ]
    for outcome in outcomes:
        print(told(outcome))
    return int(any(outcome.faults for outcome in outcomes))


def check_boundaries() -> None:
    """Kill stores, and let changes of files fail, at every one of them."""
    locks.PATIENCE = 0.0
    os.fsync = lambda descriptor: None  # nothing has to outlive a power cut
    with tempfile.TemporaryDirectory() as place:
        whole = whole_tables(Path(place) / "whole" / "run")
        for work in (finish, halves):
            for check in (check_kills, check_errors):
                folder = Path(place) / f"{check.__name__}-{work.__name__}"
                folder.mkdir()
                count = check(work, folder, whole)
                print(f"{work.__name__}, {check.__name__}: {count}, all whole", flush=True)


def told(outcome: Outcome) -> str:
    """Return a line on a way of killing."""
    moments = ", ".join(f"{count} {moment}" for moment, count in outcome.moments.items())
    result = "; ".join(outcome.faults) or "tables byte-identical"
    return f"{outcome.way}: {outcome.kills} kills ({moments}) in {outcome.runs} runs: {result}"


if __name__ == "__main__":
    sys.exit(main())
