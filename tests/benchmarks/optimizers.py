"""What a step of iEF costs beside one of Adam, and with every per-sample gradient formed.

``python -m tests.benchmarks --only optimizers`` measures these rows alone; with ``--write`` they
take the place of those in the report. A step is all that a user's loop does for one batch: forward,
backward and the change of the parameters, in training mode. Times are medians of steps taken in
turns in one process, each optimiser on a model of its own; memory is the peak of a fresh process
during three steps, state of the optimiser included, above what it holds with model and batch
loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import evalkit.optim
from evalkit.bench.timing import Work
from tests.benchmarks.markdown import line, lines, machine, with_section
from tests.benchmarks.marks import IEF_STEP, LORA, MLP
from tests.benchmarks.measure import find, prepare
from tests.benchmarks.peers import StepWithGradientsFormed
from tests.benchmarks.problems import Problem
from tests.benchmarks.timing import in_fresh_process, in_steps, peak_megabytes, training_step

TITLE = "## Steps of optimisers\n"
HEAD = (
    TITLE
    + """
`python -m tests.benchmarks --only optimizers` measures this table: forward, backward and change of
the parameters for one batch, in training steps (one forward and backward); memory is the peak of
three steps above model and batch, with the optimiser's state. The last columns say how many times
the cost of Adam's step (AdamW's for LoRA) that is, and the marks for iEF.

"""
)
REPETITIONS, FEW = 9, 2
"""Of a step, and of one that takes many times as long."""
STEPS = 3
"""Of which the peak of memory is taken: the first makes the optimiser's state."""

PROBLEMS = {MLP: replace(find(MLP), samples=64), LORA: find(LORA)}
ADAM = {MLP: "Adam", LORA: "AdamW"}
IEF, FORMED = "IEF", "iEF, gradients formed"
Step = Callable[[], object]


def adam(kind: str, model: nn.Module, inputs: Tensor, targets: Tensor) -> Step:
    """Return a step of torch's own Adam or AdamW with its defaults."""
    optimizer = getattr(torch.optim, kind)(_trainable(model), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return step


def ief(model: nn.Module, inputs: Tensor, targets: Tensor) -> Step:
    """Return a step of ours."""
    optimizer = evalkit.optim.IEF(_trainable(model), lr=1e-2)
    return lambda: optimizer.step(lambda: (model(inputs), targets))


OPTIMIZERS: dict[str, Callable[[nn.Module, Tensor, Tensor], Step]] = {
    "Adam": partial(adam, "Adam"),
    "AdamW": partial(adam, "AdamW"),
    IEF: ief,
    FORMED: StepWithGradientsFormed,
}


@dataclass(frozen=True)
class Cost:
    """What a step of an optimiser costs on a problem.

    Attributes:
        problem: its name.
        optimizer: its name.
        steps: its time in training steps.
        megabytes: the peak of its memory.
        beside: the costs of Adam's step in the same terms: time, memory.
    """

    problem: str
    optimizer: str
    steps: float
    megabytes: float
    beside: tuple[float, float]

    @property
    def ratios(self) -> tuple[float, float]:
        """Time and memory beside those of Adam."""
        return self.steps / self.beside[0], self.megabytes / self.beside[1]


def measured(name: str) -> Iterator[Cost]:
    """Yield the costs of a problem's optimisers."""
    names = (ADAM[name], IEF, FORMED)
    times = in_fresh_process(_times, name, names)
    memory = {one: peak_megabytes(_load, f"{name}/{one}", _steps) for one in names}
    for one in names:
        yield Cost(name, one, times[one], memory[one], (times[names[0]], memory[names[0]]))


def _times(name: str, names: Sequence[str]) -> dict[str, float]:
    prepare()
    work: dict[str, Work] = {one: OPTIMIZERS[one](*_batch(PROBLEMS[name])) for one in names}
    step = partial(training_step, *_batch(PROBLEMS[name]))
    often = {one: run for one, run in work.items() if one != FORMED}
    seldom = {one: run for one, run in work.items() if one == FORMED}
    return {**in_steps(often, step, REPETITIONS), **in_steps(seldom, step, FEW)}


def _load(name: str) -> tuple[str, nn.Module, Tensor, Tensor]:
    """Return what a step is made of; ``name`` is of a problem and of an optimiser."""
    problem, _, optimizer = name.partition("/")
    return optimizer, *_batch(PROBLEMS[problem])


def _steps(optimizer: str, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    step = OPTIMIZERS[optimizer](model, inputs, targets)
    for _ in range(STEPS):
        step()


def _batch(problem: Problem) -> tuple[nn.Module, Tensor, Tensor]:
    model, inputs, targets = problem.make()
    return model.train(), inputs, targets


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [value for value in model.parameters() if value.requires_grad]


def as_section(found: Sequence[Cost]) -> str:
    """Return the section of the report."""
    text = HEAD + machine("cpu") + "\n\n"
    text += lines("problem", "samples", "step", "time", "memory, MB", "x time", "x memory", "marks")
    for one in found:
        text += line(
            one.problem,
            str(PROBLEMS[one.problem].samples),
            one.optimizer,
            f"{one.steps:.2f}",
            f"{one.megabytes:.0f}",
            *(f"{ratio:.2f}" for ratio in one.ratios),
            "; ".join(_verdicts(one)),
        )
    return text


def _verdicts(one: Cost) -> Iterator[str]:
    """Yield whether each mark of a row is reached."""
    if one.optimizer != IEF:
        return
    kinds = zip(("time", "memory"), one.ratios, IEF_STEP[one.problem], strict=True)
    for kind, ratio, most in kinds:
        if not math.isinf(most):
            yield f"{kind} at most {most:g}: {'reached' if ratio <= most else '**missed**'}"


def main(report: Path | None) -> None:
    """Measure, print the section, and put it into a report."""
    found: list[Cost] = []
    for name in PROBLEMS:
        for one in measured(name):
            found.append(one)
            print(one, *one.ratios, flush=True)
    section = as_section(found)
    print(section)
    if report is not None:
        report.write_text(with_section(report.read_text("utf-8"), section), encoding="utf-8")
