"""How a study gains from ranks: two beside one measured, many simulated from measured costs.

``python -m tests.benchmarks.ranks`` prints both tables; with ``--write`` they take the place of
those in docs/guides/processes.md, and with ``--only`` one is left as it is. Two ranks and one have
one thread each and take turns; beside each start one follows that finds nothing left, which shows
what a start costs. Run it when nothing else does.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from evalkit.checkpoints import load_into, open_trajectory
from evalkit.checkpoints.tensors import write_tensor_file
from tests.benchmarks.markdown import line, lines, machine, with_section
from tests.benchmarks.simulated_ranks import Costs, Load, dealt

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "processes.md"
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
STUDY = ["checkpoints/digits-mlp", "--methods", "sgd,ef,ief,sf,ngd", "--batches"]
PROCESSORS = "seconds of a processor for each rank, scoring alone"
MARKED = ("scoring alone", PROCESSORS)
MARK = 0.55
"""The time of two ranks in that of one, at most."""

MEASURED = "## Two ranks beside one\n"
SIMULATED = "## Many ranks, simulated\n"
STUDIES = 15
LOADS = (
    Load("adapters of 3.5 MB on a model of 0.9 GB, 18 s a batch", 18.0, 3.5e6, 0.9e9),
    Load("whole models of 0.9 GB, 18 s a batch", 18.0, 0.9e9),
    Load("adapters of 3.5 MB on a model of 0.9 GB, 1 s a batch", 1.0, 3.5e6, 0.9e9),
)
RANKS = (1, 2, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Start:
    """What a start took.

    Attributes:
        seconds: from its beginning to its end.
        processor: seconds of all its processes on the processors.
    """

    seconds: float
    processor: float


def started(ranks: int, run: Path, batches: int) -> Start:
    """Return what a study took on one process or several ranks, with one thread each."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    program = [sys.executable, *(several if ranks > 1 else ()), "-m", "evalkit", "score"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [*program, *STUDY, str(batches), "--out", str(run)],
        cwd=ROOT,
        env=ONE_THREAD,
        check=True,
        capture_output=True,
    )
    ended, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    used = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    return Start(ended - began, used)


def measured(batches: int, repetitions: int) -> str:
    """Return the section that has two ranks beside one."""
    turns: list[dict[tuple[int, bool], Start]] = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repetitions):
            found = {}
            for ranks in (1, 2):
                run = Path(folder) / f"{turn}-{ranks}"
                for is_whole in (False, True):
                    found[ranks, is_whole] = started(ranks, run, batches)
                    print(ranks, "whole" if is_whole else "new", found[ranks, is_whole], flush=True)
            turns.append(found)
    return as_section(turns, batches)


def as_section(turns: Sequence[dict[tuple[int, bool], Start]], batches: int) -> str:
    """Return the section of some turns.

    Args:
        turns: a start by the number of ranks and whether it found nothing left.
        batches: of each checkpoint.
    """
    kinds: dict[str, Callable[[Start, Start, int], float]] = {
        "from start to end": lambda new, idle, ranks: new.seconds,
        "scoring alone": lambda new, idle, ranks: new.seconds - idle.seconds,
        "a start that finds nothing left": lambda new, idle, ranks: idle.seconds,
        PROCESSORS: lambda new, idle, ranks: (new.processor - idle.processor) / ranks,
    }
    rows = ""
    for name, seconds in kinds.items():
        one, two = (
            [seconds(turn[ranks, False], turn[ranks, True], ranks) for turn in turns]
            for ranks in (1, 2)
        )
        ratio = statistics.median(b / a for a, b in zip(one, two, strict=True))
        mark = ("reached" if ratio <= MARK else "**missed**") if name in MARKED else ""
        values = (statistics.median(one), statistics.median(two), ratio)
        rows += line(name, *(f"{value:.3g}" for value in values), mark)
    counted = "one turn" if len(turns) == 1 else f"medians of {len(turns)} turns"
    busy = statistics.median(turn[1, False].seconds / turn[1, False].processor for turn in turns)
    return (
        MEASURED
        + f"\n`python -m tests.benchmarks.ranks --only measured` scores {11 * batches} batches of "
        "the bundled trajectory by five methods, with one process and with two ranks in turns, one "
        f"thread each: seconds, {counted}. The mark: scoring with two ranks "
        f"takes at most {MARK} times as long. Seconds of a processor leave out the time that other "
        f"work on the machine took; one process took {busy:.1f} times its own while this was "
        "measured, and where that is far above 1 the first rows say more of the other work. "
        "Measured on\n"
        + machine("cpu")
        + "\n\n"
        + lines("", "one", "two ranks", "two / one", "")
        + rows
    )


def costs() -> Costs:
    """Measure what one request, one durable row and one byte of a checkpoint cost here.

    What processors do is counted in their time, which other work on the machine takes no part of.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started(1, folder / "run", 1)
        start = min(started(1, folder / "run", 1).processor for _ in range(2))
        model = nn.Sequential(*(nn.Linear(3072, 3072) for _ in range(4)))
        path = folder / "step-0.safetensors"
        write_tensor_file(path, model.state_dict())
        size = path.stat().st_size
        content = path.read_bytes()
        hashing = size / least(lambda: hashlib.sha256(content), time.process_time)
        checkpoint = open_trajectory(path).checkpoints[0]
        whole = least(lambda: load_into(model, checkpoint), time.process_time)
        time.sleep(3)  # from now on its hash is known
        load_into(model, checkpoint)
        loading = size / min(whole, least(lambda: load_into(model, checkpoint), time.process_time))
        put = least(lambda: durable(folder / "rows", b"x" * 2000))
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("localhost", server.port, is_master=False, wait_for_workers=False)
    asked = least(lambda: [client.add("n", 1) for _ in range(500)]) / 500
    return Costs(start, asked, 2 * put, hashing, loading, spread=spread())


def spread() -> float:
    """Return the standard deviation of the logarithm of a batch's time, of the bundled study."""
    from evalkit.checkpoints import trajectory_task
    from evalkit.scoring import score
    from evalkit.settings import Settings
    from evalkit.study.batches import samples_to_score, take_batch

    trajectory = open_trajectory(ROOT / "checkpoints" / "digits-mlp")
    task, settings = trajectory_task(trajectory), Settings()
    samples = samples_to_score(task, settings.batch_size)
    model = task.build_model(0).eval()
    logarithms = []
    for checkpoint in trajectory.checkpoints:
        load_into(model, checkpoint)
        for batch in range(4):
            given = take_batch(samples, settings, batch)
            score(model, *given, methods=("sgd",))  # what a first call costs is not its spread
            began = time.thread_time()
            score(model, *given, methods=("sgd", "ef", "ief", "sf", "ngd"))
            logarithms.append(torch.tensor(time.thread_time() - began).log().item())
    return statistics.stdev(logarithms)


def durable(path: Path, content: bytes) -> None:
    """Append to a file so that it is on the disk."""
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def least(
    work: Callable[[], object], clock: Callable[[], float] = time.perf_counter, repetitions: int = 5
) -> float:
    """Return the least seconds of a few repetitions, by a clock."""
    found = []
    for _ in range(repetitions):
        began = clock()
        work()
        found.append(clock() - began)
    return min(found)


def many(found: Costs, ranks: Sequence[int] = RANKS, studies: int = STUDIES) -> str:
    """Return the section that has many ranks, simulated from measured costs."""
    text = (
        SIMULATED
        + f"\n`python -m tests.benchmarks.ranks --only simulated` simulates {studies} studies of 7 "
        "checkpoints x 100 batches (the paper's), event by event, with the blocks that ranks get. "
        f"Measured: {found.start:.2g} s for a start, {1e6 * found.request:.0f} µs for a request of "
        f"the store (which serves one after another), {1e3 * found.put:.2g} ms to keep a unit, "
        f"{found.hashing / 1e9:.2g} GB/s to hash and {found.loading / 1e9:.2g} GB/s to load a "
        f"checkpoint, and a spread of {100 * found.spread:.0f}% in the time of a batch. Assumed: a "
        f"folder that serves {found.folder / 1e9:.0f} GB/s to all ranks together. 18 s a batch is "
        "the paper's cost (30 minutes a checkpoint on an A100). Times of batches are drawn with "
        "seeds 0 to 14. All ranks score one study after another, or are dealt to the studies and "
        "score them side by side; speed-up and shares are those of the faster way, beside one "
        "process. Starting is a rank's start with all that it reads then; store is asking it and "
        "keeping rows.\n"
    )
    for load in LOADS:
        text += f"\n{load.name[0].upper()}{load.name[1:]}:\n\n"
        text += lines(
            *("ranks", "hours, one after another", "side by side", "speed-up", "efficiency"),
            *("scoring", "starting", "loading", "store", "waiting at the end"),
        )
        alone = dealt(load, studies, 1, found, side_by_side=False).seconds
        for count in ranks:
            ways = [dealt(load, studies, count, found, beside) for beside in (False, True)]
            best = min(ways, key=lambda way: way.seconds)
            gain, total = alone / best.seconds, count * best.seconds
            shares = {name: seconds / total for name, seconds in best.spent.items()}
            text += line(
                str(count),
                *(f"{way.seconds / 3600:.3g}" for way in ways),
                f"{gain:.4g}",
                f"{gain / count:.0%}",
                *(f"{shares[name]:.1%}" for name in ("scoring", "starting", "loading")),
                f"{shares['asking'] + shares['writing']:.2%}",
                f"{shares['waiting']:.1%}",
            )
    return text


def main() -> None:
    """Measure, simulate, print the tables, and write them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=["measured", "simulated"])
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sections = []
    if arguments.only != "simulated":
        sections.append(measured(arguments.batches, arguments.repetitions))
    if arguments.only != "measured":
        sections.append(many(costs()))
    print(*sections, sep="\n")
    if arguments.write:
        text = PAGE.read_text(encoding="utf-8")
        for section in sections:
            text = with_section(text, section)
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
