"""What one batch costs when two ranks share its samples, beside one process.

``python -m tests.benchmarks.split_batch`` prints the table; with ``--write`` it takes the place of
that in docs/guides/processes.md. Each problem has a batch of the size of other benchmarks, and one
of some seconds. Both processes have one thread each and take turns: one alone, then both together.
Models and batches are made before. Where a machine has other work too, time on processors says more
than time on the clock: that of the busier rank is what a batch takes on cores of its own, but for
waiting. Memory is what tensors hold at most, as torch counts it.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from evalkit.bench.memory import peak_mebibytes
from evalkit.evaluation.full_precision import full_precision
from evalkit.group import Group
from evalkit.linearization import linearize
from evalkit.linearization.split import Split
from evalkit.scoring import score_linearization
from tests.benchmarks.markdown import line, lines, machine, with_section
from tests.benchmarks.problems import PROBLEMS, Problem
from tests.support.ranks import together

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "processes.md"
TITLE = "## One batch on two ranks\n"
METHODS = ("sgd", "ef", "ief", "sf", "ngd:solver=cg:max_iterations=10")
SAMPLES = {
    "MLP 10.5M": (160, 1024),
    "CNN, GroupNorm": (64, 256),
    "transformer, full": (64, 128),
}
"""N of the batches of each problem."""
MARK = 0.7
"""The time of two ranks in that of one, at most."""
TURNS = 3


@dataclass(frozen=True)
class Taken:
    """What a batch takes in one process.

    Attributes:
        seconds: on the clock.
        processor: on a processor.
        peak: MiB of tensors at most, where that was counted.
    """

    seconds: float
    processor: float
    peak: float = 0.0


Made = tuple[nn.Module, Tensor, Tensor]
"""A model, its inputs and targets."""


def scored(made: Made, split: Split | None) -> None:
    """Score a batch, alone or with others."""
    model, inputs, targets = made
    if split is not None and not split.leads:
        split.follow(lambda: made)
        return
    with full_precision():
        lin = linearize(model, inputs, targets, split=split)
        score_linearization(lin, METHODS, (1e-4,), 0, again=False)


def led(made: Made, split: Split) -> None:
    """Score a batch with others."""
    if not split.leads:
        scored(made, split)
        return
    with split.leading():
        scored(made, split)


def timed(work: Callable[[], None]) -> Taken:
    """Return what some work takes."""
    seconds, processor = time.perf_counter(), time.process_time()
    work()
    return Taken(time.perf_counter() - seconds, time.process_time() - processor)


def measured(rank: int) -> dict[tuple[str, int, str], list[Taken]]:
    """Return what each problem takes this process, alone and with the other: times, then memory."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    split, group = Split(Group()), Group()
    found: dict[tuple[str, int, str], list[Taken]] = {}
    for problem in chosen():
        made = problem.make()
        ways: dict[str, Callable[[], None]] = {
            "one": partial(scored, made, None) if rank == 0 else lambda: None,
            "two": partial(led, made, split),
        }
        for work in ways.values():  # what a first call takes does not count
            group.objects(None)
            work()
        for _ in range(TURNS):
            for name, work in ways.items():
                group.objects(None)  # so that both begin together
                found.setdefault((problem.name, problem.samples, name), []).append(timed(work))
        for name, work in ways.items():
            group.objects(None)
            peak = peak_mebibytes(work, torch.device("cpu"))
            assert peak is not None
            found[problem.name, problem.samples, name].append(Taken(0.0, 0.0, peak))
    return found


def chosen() -> list[Problem]:
    """Return the problems that are measured."""
    return [
        replace(one, samples=samples) for one in PROBLEMS for samples in SAMPLES.get(one.name, ())
    ]


def table() -> str:
    """Return the section."""
    both = together(measured)
    rows = ""
    for problem in chosen():
        (alone, peak), *ranks = (
            (taken[:TURNS], taken[TURNS].peak)
            for one, way in ((both[0], "one"), (both[0], "two"), (both[1], "two"))
            for taken in [one[problem.name, problem.samples, way]]
        )
        clock = statistics.median(
            b.seconds / a.seconds for a, b in zip(alone, ranks[0][0], strict=True)
        )
        busy = statistics.median(
            max(b.processor, c.processor) / a.processor
            for a, b, c in zip(alone, ranks[0][0], ranks[1][0], strict=True)
        )
        verdict = "reached" if clock <= MARK else "**missed**"
        seconds = statistics.median(a.processor for a in alone)
        memory = (f"{value:.0f}" for value in (peak, ranks[0][1], ranks[1][1]))
        rows += line(
            f"{problem.name}, N = {problem.samples}",
            f"{seconds:.2f}",
            f"{clock:.2f}",
            f"{busy:.2f}",
            verdict,
            *memory,
        )
    return (
        TITLE
        + "\n`python -m tests.benchmarks.split_batch` scores one batch by SGD, EF, iEF, SF and 10 "
        "iterations of CG, with one process and with two ranks that split it in turns, one thread "
        f"each: medians of {TURNS} turns. Mark: two ranks take at most {MARK} times as long. "
        f"Measured with {_with_versions_first(machine('cpu'))}\n\n"
        + lines(
            "",
            "one: processor seconds",
            "two / one, clock",
            "two / one, processor of the busier rank",
            "",
            "MiB: one",
            "rank 0",
            "rank 1",
        )
        + rows
    )


def _with_versions_first(told: str) -> str:
    """Return what is said of a machine in words that the page does not have already."""
    hardware, versions = told.rstrip(".").split("; ")
    return f"{versions}, on {hardware}."


def main() -> None:
    """Measure, print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write it into {PAGE.name}")
    arguments = parser.parse_args()
    section = table()
    print(section)
    if arguments.write:
        text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        PAGE.write_text(with_section(text, section), encoding="utf-8")


if __name__ == "__main__":
    main()
