"""What a checkpoint at one damping costs on the paper's large architectures, with random weights.

``python -m tests.benchmarks.large --device cuda``: the paper (section 6) scores 100 batches of 160
samples for each checkpoint and damping and reports 30 minutes of an A100 for it. Rows are kept as
they come, in a file beside the report: a start that was cut off is gone on with.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import evalkit
from evalkit.bench.memory import peak_mebibytes
from evalkit.bench.timing import seconds
from evalkit.errors import TooLittleMemoryError
from evalkit.evaluation.forward import forward
from tests.benchmarks.architectures import (
    ARCHITECTURES,
    FULL,
    SCALES,
    SIZES,
    TINY,
    Architecture,
    Made,
)
from tests.benchmarks.markdown import line, lines, machine, with_section

TITLE = "## Large architectures\n"
BATCHES = 100
"""Of a checkpoint and damping, as the paper scores them."""
REPETITIONS = {FULL: 3, TINY: 1}
TEN = tuple(10.0**k for k in range(-12, -2))
FOUR = ("sgd", "ef", "ief", "sf")
PART = {FULL: 32, TINY: 2}
"""Samples at a time, where the batch is not evaluated as a whole."""


@dataclass(frozen=True)
class Work:
    """What is scored.

    Attributes:
        name: as the table shows it.
        methods: that score a batch.
        dampings: at which they do.
        in_parts: the batch is evaluated a part of the samples at a time.
        by_layers: the methods need layers whose weights are trained.
    """

    name: str
    methods: tuple[str, ...]
    dampings: tuple[float, ...] = (1e-12,)
    in_parts: bool = False
    by_layers: bool = False


WORK = (
    Work("sgd, ef, ief, sf", FOUR),
    Work("the same at 10 dampings", FOUR, TEN),
    Work("sgd, ef, ief, sf", FOUR, in_parts=True),
    Work("sgd, ef, ief, sf, ngd", (*FOUR, "ngd")),
    Work(
        "kfac of three kinds of labels",
        ("kfac", "kfac:labels=empirical", "kfac:labels=improved"),
        by_layers=True,
    ),
)
"""Most wanted first. The paper's figure 5 has KFAC, eKFAC and ieKFAC: labels sampled, empirical and
improved."""


@dataclass(frozen=True)
class Row:
    """What some work took.

    Attributes:
        model: the architecture.
        work: its name.
        part: samples at a time, 0 for the whole batch.
        machine: it was measured on.
        trainable: P.
        step: seconds of a training step.
        took: seconds of a batch; None where it does not fit into memory.
        dampings: how many.
        peak: MiB above model and batch, None where nothing counts them.
    """

    model: str
    work: str
    part: int
    machine: str
    trainable: int
    step: float
    took: float | None
    dampings: int
    peak: float | None

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What is measured once."""
        return self.model, self.work, self.part, self.machine

    def as_line(self) -> str:
        """Return the row of the table."""
        begin = (self.model, f"{self.trainable:,}", self.work, str(self.part or "whole"))
        if self.took is None:
            return line(*begin, f"{1e3 * self.step:.3g}", "does not fit", "", "", "")
        minutes = BATCHES * self.took / self.dampings / 60
        return line(
            *begin,
            f"{1e3 * self.step:.3g}",
            f"{self.took:.3g}",
            f"{self.took / self.step:.3g}",
            "" if self.peak is None else f"{self.peak / 1024:.3g}",
            f"{minutes:.2g}",
        )


def rows(
    one: Architecture, device: str, scale: str, where: str, known: Sequence[tuple[object, ...]]
) -> Iterator[Row]:
    """Yield what is not known of an architecture, as it is measured."""
    possible = [work for work in WORK if one.layers or not work.by_layers]
    wanted = [w for w in possible if (one.name, w.name, _part(w, scale), where) not in known]
    if not wanted:
        return
    made = one.make(scale, device)
    trainable = sum(value.numel() for value in made.model.parameters() if value.requires_grad)
    step = _seconds(lambda: _step(made, PART[scale]), scale)
    for work in wanted:
        part = _part(work, scale)
        score = partial(_score, made, work, part)
        took: float | None = None
        peak: float | None = None
        try:
            took = _seconds(score, scale)
            peak = peak_mebibytes(score, torch.device(device))
        except TooLittleMemoryError:
            pass
        _emptied(device)
        yield Row(one.name, work.name, part, where, trainable, step, took, len(work.dampings), peak)


def _score(made: Made, work: Work, part: int) -> None:
    given = made.model, made.inputs, made.targets
    evalkit.score(
        *given, methods=work.methods, damping=work.dampings, micro_batch_size=part or None
    )


def _part(work: Work, scale: str) -> int:
    return PART[scale] if work.in_parts else 0


def _seconds(work: Callable[[], object], scale: str) -> float:
    """Return the median of some repetitions after one that does not count."""
    work()
    return statistics.median(seconds(work) for _ in range(REPETITIONS[scale]))


def _step(made: Made, part: int) -> None:
    """Run one forward and backward of the batch, the whole where it fits and else in parts."""
    try:
        _forward_and_backward(made, len(made.targets))
    except torch.OutOfMemoryError:
        _forward_and_backward(made, part)


def _forward_and_backward(made: Made, part: int) -> None:
    made.model.zero_grad()
    for start in range(0, len(made.targets), part):
        some = slice(start, start + part)
        logits = forward(made.model, {name: value[some] for name, value in made.inputs.items()})
        _loss(logits, made.targets[some]).backward()


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")


def _emptied(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def section(found: Sequence[Row], scale: str) -> str:
    """Return the table, rows of a machine together."""
    text = (
        f"{TITLE}\n`python -m tests.benchmarks.large` measures this table: random weights, N = "
        f"{SIZES[scale].samples}, medians of {REPETITIONS[scale]};\nmemory is the peak above "
        f"model and batch. The last column is {BATCHES} such batches by the number of dampings,\n"
        "for which the paper reports 30 minutes on an A100.\n"
    )
    head = (
        *("model", "trainable", "work", "at a time", "step, ms", "a batch, s", "in steps"),
        *("peak, GiB", "min per checkpoint and damping"),
    )
    for where in dict.fromkeys(row.machine for row in found):
        table = "".join(row.as_line() for row in found if row.machine == where)
        text += f"\n{where}\n\n{lines(*head)}{table}"
    return text


def read(path: Path) -> list[Row]:
    """Return the rows that a file keeps."""
    if not path.exists():
        return []
    return [Row(**json.loads(text)) for text in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Measure what is not known, print it, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--scale", choices=SCALES, default=FULL, help="tiny: a rehearsal")
    parser.add_argument("--model", action="append", choices=[one.name for one in ARCHITECTURES])
    parser.add_argument("--report", type=Path, help="write the table into this file")
    parser.add_argument("--kept", type=Path, help="keep rows here, and measure no row twice")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    where = machine(arguments.device, "transformers", "peft")
    found = read(arguments.kept) if arguments.kept else []
    for one in ARCHITECTURES:
        if arguments.model and one.name not in arguments.model:
            continue
        known = [row.key for row in found]
        for row in rows(one, arguments.device, arguments.scale, where, known):
            found.append(row)
            print(row.as_line(), end="", flush=True)
            if arguments.kept:
                with arguments.kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
            if arguments.report:  # as far as it has come
                report = arguments.report
                text = report.read_text(encoding="utf-8") if report.exists() else ""
                text = with_section(text, section(found, arguments.scale))
                report.write_text(text, encoding="utf-8")
        _emptied(arguments.device)


if __name__ == "__main__":
    main()
