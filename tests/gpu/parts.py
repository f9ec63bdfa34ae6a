"""The parts of the kit: what each runs, for how long at most, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.architectures import ARCHITECTURES, FULL
from tests.benchmarks.problems import PROBLEMS, REHEARSED

TESTS = "tests/cuda"
ALONE = ("test_waiting", "test_memory", "test_commands", "test_other_device")
"""Tests that fill a card's memory, count its calls or start processes: nothing runs beside them."""
TOGETHER = ("test_products", "test_scores", "test_optimizers")
MOST_WORKERS = 6
"""Processes that share a card: each takes some hundred MiB of it before it holds a tensor."""
REPORT = Path(__file__).parents[2] / "reports" / "benchmarks-gpu.md"


@dataclass(frozen=True)
class Kit:
    """How the kit is run.

    Attributes:
        device: that it runs on.
        scale: ``full``, or ``tiny`` for a rehearsal.
        folder: what is kept between starts.
        workers: processes that test at once.
        names: of tests, as ``pytest -k`` takes them; empty for all.
    """

    device: str
    scale: str
    folder: Path
    workers: int
    names: str = ""

    @property
    def report(self) -> Path:
        """Where tables are written: in the project's reports where a card was measured in full."""
        measured = self.device == "cuda" and self.scale == FULL
        return REPORT if measured else self.folder / REPORT.name

    @property
    def outcomes(self) -> Path:
        """How each test ended."""
        return self.folder / "tests.tsv"


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: as the closing table shows it.
        command: what is run, after the interpreter, in the given kit.
        seconds: that it may take.
        needs: packages without which it is left out.
    """

    name: str
    command: Callable[[Kit], list[str]]
    seconds: int
    needs: tuple[str, ...] = ()


def _tests(names: tuple[str, ...], alone: bool) -> Callable[[Kit], list[str]]:
    def command(kit: Kit) -> list[str]:
        files = [f"{TESTS}/{name}.py" for name in names]
        many = kit.workers > 1 and not alone
        return [
            *("-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.gpu.passed"),
            *("--passed", str(kit.outcomes), "--device", kit.device),
            *(("--numprocesses", str(kit.workers)) if many else ()),
            *(("-k", kit.names) if kit.names else ()),
            *files,
        ]

    return command


def _beside_peers(problem: str, kind: str) -> Callable[[Kit], list[str]]:
    def command(kit: Kit) -> list[str]:
        given = ["--device", kit.device, "--problem", problem, "--only", kind]
        return ["-m", "tests.benchmarks", *given, "--write", "--report", str(kit.report)]

    return command


def _large(model: str) -> Callable[[Kit], list[str]]:
    def command(kit: Kit) -> list[str]:
        given = ["--device", kit.device, "--scale", kit.scale, "--model", model]
        kept = ["--kept", str(kit.folder / "large.jsonl"), "--report", str(kit.report)]
        return ["-m", "tests.benchmarks.large", *given, *kept]

    return command


_PYTEST = ("pytest", "bokeh", "click", "rich", "jinja2")
_KINDS = {"products": ("curvlinops",), "solved": ("curvlinops",), "scores": (), "memory": ()}
"""Of rows beside peers, with what they need: gradients that are formed need nothing."""


def parts(scale: str) -> tuple[Part, ...]:
    """Return the parts in the order in which they are run: what is wanted most comes first."""
    problems = [one.name for one in PROBLEMS if one.products] if scale == FULL else [REHEARSED.name]
    beside = [
        Part(f"beside peers: {name}, {kind}", _beside_peers(name, kind), 45, needs)
        for name in problems
        for kind, needs in _KINDS.items()
    ]
    large = [
        Part(one.name, _large(one.name), 60, ("transformers", "peft")) for one in ARCHITECTURES
    ]
    return (
        Part("tests that run alone", _tests(ALONE, True), 90, _PYTEST),
        Part("tests that share the device", _tests(TOGETHER, False), 150, _PYTEST),
        *beside[: len(_KINDS)],
        *large,
        *beside[len(_KINDS) :],
    )
