"""Fuzz every reader: ``python -m tests.fuzz --inputs 10000 --seed 0``; one input: ``--only``.

Prints how many inputs each reader was given, how many of them it took, and each finding once.
The exit status is 1 where there is a finding.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import guards
from tests.fuzz.readers import READERS
from tests.fuzz.running import Finding, run_one, run_reader


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the fuzzer and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", help="names, with commas between; default: all")
    parser.add_argument("--only", type=int, help="one input, by its number, of one reader")
    given = parser.parse_args(arguments)
    names = given.readers.split(",") if given.readers else list(READERS)
    with tempfile.TemporaryDirectory() as home:
        os.environ["MPLCONFIGDIR"] = str(Path(home) / "matplotlib")
        importlib.import_module("matplotlib.font_manager")  # looks for fonts, once
        guards.ALLOWED.append(home)
        if given.only is not None:
            with guards.scratch() as scratch:
                place = Path(scratch) / "x"
                found, _ = run_one(READERS[names[0]], given.seed, given.only, Path(home), place)
            print("nothing found" if found is None else f"{found.kind}\n{found.told}")
            return int(found is not None)
        return _run_all(names, given.seed, given.inputs, Path(home))


def _run_all(names: Sequence[str], seed: int, inputs: int, home: Path) -> int:
    weights = sum(READERS[name].weight for name in names)
    kinds: dict[tuple[str, str], list[Finding]] = {}
    total = 0
    for name in names:
        count = max(1, -(-inputs * READERS[name].weight // weights))
        start, found, taken = time.monotonic(), 0, 0
        for finding, was_taken in run_reader(name, seed, count, home):
            total += 1
            taken += was_taken
            if finding is not None:
                found += 1
                same = kinds.setdefault((name, finding.kind), [])
                same.append(finding)
                if len(same) == 1:
                    print(f"\n--- {name} --only {finding.number}: {finding.kind}\n{finding.told}\n")
        seconds = time.monotonic() - start
        print(
            f"{name:22} {count:6} inputs {taken:6} taken {count - taken - found:6} refused "
            f"{found:5} findings {seconds:7.1f} s",
            flush=True,
        )
    print(f"{'all':22} {total:6} inputs, {len(kinds)} kinds of findings")
    for (name, kind), findings in sorted(kinds.items()):
        print(f"{name}: {kind} ({len(findings)} times, first: --only {findings[0].number})")
    return int(bool(kinds))


if __name__ == "__main__":
    sys.exit(main())
