"""How long commands take from their start, alone and beside a busy process, in seconds.

``python -m tests.benchmarks --only commands`` measures these rows alone; with ``--write`` they take
the place of those in the report. Everything runs in processes of its own with torch's default
threads: the first user of a machine sets nothing.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.markdown import line, lines, machine, with_section

ROOT = Path(__file__).parents[2]
TITLE = "## Commands\n"
HEAD = (
    TITLE
    + """
`python -m tests.benchmarks --only commands` measures this table: seconds from start to end of a
process, medians of several starts and their range; a busy process takes one core throughout.
Scores of a digits batch (`evalkit.score` with its defaults, in Python) are taken in one process,
after a first call.

"""
)
ALONE, BESIDE = "alone", "beside a busy process"
METHODS = "sgd,ef,ief,sf,ngd"
TRAJECTORY = "checkpoints/digits-mlp"
BATCH = """
import sys, time
import evalkit
from evalkit.checkpoints import load_into, open_trajectory, trajectory_task
from evalkit.settings import Settings
from evalkit.study.batches import samples_to_score, take_batch

trajectory = open_trajectory(sys.argv[1])
task, settings = trajectory_task(trajectory), Settings()
batch = take_batch(samples_to_score(task, settings.batch_size), settings, 0)
model = task.build_model(0).eval()
load_into(model, trajectory.checkpoints[int(sys.argv[2])])
evalkit.score(model, *batch)
for _ in range(int(sys.argv[3])):
    start = time.perf_counter()
    evalkit.score(model, *batch)
    print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Command:
    """Something that is started.

    Attributes:
        name: as the table shows it.
        seconds: runs it in a folder so many times and returns what each took.
        repetitions: how often.
        marks: seconds that are asked for, by what else runs; each of them is measured.
    """

    name: str
    seconds: Callable[[Path, int], Sequence[float]]
    repetitions: int
    marks: dict[str, float | None]


@dataclass(frozen=True)
class Timed:
    """A command and what its starts took beside what else runs."""

    command: Command
    beside: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the starts."""
        return statistics.median(self.seconds)


def started(
    arguments: Sequence[str], fresh: str = "", status: int = 0
) -> Callable[..., list[float]]:
    """Return how to start ``evalkit`` with arguments, in which DIR is a folder of the measurement.

    Args:
        arguments: of the command.
        fresh: the option that a start of its own folder goes to, empty where nothing is written.
        status: the exit status that is expected.
    """

    def seconds(folder: Path, repetitions: int) -> list[float]:
        found = []
        for turn in range(repetitions):
            given = [argument.replace("DIR", str(folder)) for argument in arguments]
            if fresh:
                given += [fresh, tempfile.mkdtemp(prefix=f"{turn}-", dir=folder) + "/run"]
            start = time.perf_counter()
            _process(["-m", "evalkit", *given], status)
            found.append(time.perf_counter() - start)
        return found

    return seconds


def batch_scored(checkpoint: int) -> Callable[..., list[float]]:
    """Return how to score a batch of a checkpoint of the bundled trajectory, in one process."""

    def seconds(folder: Path, repetitions: int) -> list[float]:
        program = ["-c", BATCH, TRAJECTORY, str(checkpoint), str(repetitions)]
        return [float(text) for text in _process(program).split()]

    return seconds


def _process(arguments: Sequence[str], status: int = 0) -> str:
    """Run Python at the root of the project with default threads, and return what it prints."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    settings["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=settings, text=True, capture_output=True
    )
    if done.returncode != status:
        raise RuntimeError(f"expected exit status {status} of {arguments}, found {done.stderr}")
    return done.stdout


DEMO = ["score", TRAJECTORY, "--methods", METHODS, "--batches", "20"]
COMMANDS = (
    Command("`make demo`, scoring", started(DEMO, "--out"), 3, {ALONE: 20.0, BESIDE: 40.0}),
    Command("`make demo`, report", started(["report", "DIR/demo"]), 3, {ALONE: None}),
    Command(
        "four scores of a digits batch, initialised",
        batch_scored(0),
        15,
        {ALONE: 0.045, BESIDE: 0.09},
    ),
    Command(
        "four scores of a digits batch, trained",
        batch_scored(-1),
        15,
        {ALONE: 0.045, BESIDE: 0.09},
    ),
    Command("`evalkit list`", started(["list"]), 5, {ALONE: 1.5}),
    Command(
        "`evalkit report`, start (of a run that is not there)",
        started(["report", "DIR/nothing"], status=2),
        5,
        {ALONE: 1.5},
    ),
)


def measured(commands: Sequence[Command] = COMMANDS) -> Iterator[Timed]:
    """Yield what commands take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _process(["-m", "evalkit", *DEMO, "--out", str(folder / "demo")])
        for command in commands:
            for beside in command.marks:
                with busy() if beside == BESIDE else nullcontext():
                    took = command.seconds(folder, command.repetitions)
                yield Timed(command, beside, tuple(took))


@contextmanager
def busy() -> Iterator[None]:
    """Keep one core busy within the block."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def as_section(found: Sequence[Timed]) -> str:
    """Return the section of the report."""
    text = HEAD + machine("cpu") + "\n\n"
    text += lines("command", "", "seconds", "from", "to", "mark", "")
    for one in found:
        mark = one.command.marks[one.beside]
        text += line(
            one.command.name,
            one.beside,
            *(f"{value:.3g}" for value in (one.median, min(one.seconds), max(one.seconds))),
            "" if mark is None else f"{mark:g}",
            "" if mark is None else "reached" if one.median <= mark else "**missed**",
        )
    return text


def main(report: Path | None) -> None:
    """Measure, print the section, and put it into a report."""
    found = []
    for one in measured():
        found.append(one)
        print(one.command.name, one.beside, *(f"{value:.3g}" for value in one.seconds), flush=True)
    section = as_section(found)
    print(section)
    if report is not None:
        report.write_text(with_section(report.read_text("utf-8"), section), encoding="utf-8")
