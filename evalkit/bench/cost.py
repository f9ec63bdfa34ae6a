"""What updates and scores cost on one model and batch, beside its forward and backward."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from evalkit import likelihoods
from evalkit.bench.memory import peak_mebibytes
from evalkit.bench.timing import Timed, Timing, in_turns, seconds
from evalkit.curvature.others import linearized
from evalkit.errors import EvalkitError
from evalkit.evaluation.devices import check_device
from evalkit.evaluation.forward import cast, forward, in_precision
from evalkit.evaluation.given import Inputs
from evalkit.evaluation.precision import HALF
from evalkit.linearization import Linearization, linearize
from evalkit.machine import memory_gib, processor, versions
from evalkit.scoring import check_request, score_linearization
from evalkit.settings import Settings
from evalkit.storage.columns import frame_of
from evalkit.storage.files import make_folder, write_atomically
from evalkit.storage.rows import Score
from evalkit.study.batches import samples_to_score, take_batch
from evalkit.tasks import Samples, Task
from evalkit.tasks.task import user_code
from evalkit.updates import update
from evalkit.updates.parser import parse
from evalkit.updates.registry import takes_batch_alone
from evalkit.version import __version__

TABLE_FILE = "cost.csv"
PROVENANCE_FILE = "cost.json"
FORWARD, BACKWARD, STEP = "forward", "backward", "training step"
LINEARIZE, UPDATE, SCORE, SCORES = "linearize", "update", "score", "all scores"

Piece = tuple[str, str]
"""A piece of work and the method that it belongs to, empty for those of no method."""


@dataclass(frozen=True)
class Cost:
    """One row of the table; the fields are its columns.

    Attributes:
        work: forward, backward, training step (both together), linearize, update (linearize and
            form the direction), score (linearize and score one method) or all scores (at once).
        method: the method of an update or score, empty otherwise.
        steps: median over the repetitions of the time relative to the training steps around it.
        steps_low: lower quartile of the same.
        steps_high: upper quartile of the same.
        ms: ``steps`` times the median training step in milliseconds, so that other load on the
            machine favours no row.
        ms_low: the same for ``steps_low``.
        ms_high: the same for ``steps_high``.
        peak_mib: the most MiB of tensors above model and batch; empty where torch cannot tell, and
            for backward, which needs the graph of the forward.
        iterations: those of the method's solver, empty for methods without one.
    """

    work: str
    method: str
    steps: float
    steps_low: float
    steps_high: float
    ms: float
    ms_low: float
    ms_high: float
    peak_mib: float | None
    iterations: int | None


@dataclass(frozen=True)
class CostTable:
    """The costs on one model and batch.

    Attributes:
        rows: the columns are the fields of :class:`Cost`.
        provenance: task, settings, sizes, machine, versions, and every time in seconds.
    """

    rows: pd.DataFrame
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class _Problem:
    """A model and one batch, in the precision and on the device of the evaluation.

    Attributes:
        raised: the model was in half precision, which its forward may ask for.
    """

    model: nn.Module
    batch: Samples
    likelihood: str
    settings: Settings
    raised: bool

    def parts(self) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield the micro-batches."""
        size = self.settings.micro_batch_size or len(self.batch)
        for start in range(0, len(self.batch), size):
            yield self.batch.take(slice(start, start + size))

    @torch.no_grad()
    def checked_targets(self) -> Tensor:
        """Return the targets as the likelihood takes them."""
        check = likelihoods.get(self.likelihood).check
        return torch.cat([check(self._logits(x), y) for x, y in self.parts()])

    def loss(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """Run the forward of one micro-batch with its graph."""
        losses = likelihoods.get(self.likelihood).losses(self._logits(inputs), targets)
        return losses.sum()

    def _logits(self, inputs: Inputs) -> Tensor:
        with in_precision(self.model.parameters()) if self.raised else nullcontext():
            return forward(self.model, inputs)

    def step(self) -> float:
        """Run forward and backward and return their time."""
        self.model.zero_grad()
        return sum(seconds(partial(self._step_on, *part)) for part in self.parts())

    def _step_on(self, inputs: Inputs, targets: Tensor) -> None:
        self.loss(inputs, targets).backward()

    def forward(self) -> float:
        return sum(seconds(partial(self.loss, *part)) for part in self.parts())

    def backward(self) -> float:
        self.model.zero_grad()
        return sum(seconds(self.loss(*part).backward) for part in self.parts())

    def linearize(self) -> Linearization:
        size = self.settings.micro_batch_size
        batch = self.batch
        return linearize(self.model, batch.inputs, batch.targets, self.likelihood, size)

    def linearized(self) -> AbstractContextManager[tuple[Linearization, tuple[str, ...]]]:
        """Provide the linearization without what ``others=leave`` leaves out."""
        settings, batch = self.settings, self.batch
        given = batch.inputs, batch.targets, self.likelihood, settings.micro_batch_size, None
        return linearized(self.model, *given, settings.others)

    def update(self, method: str) -> Tensor:
        """Return the direction of a method, from model and batch."""
        settings = self.settings
        lin = self.linearize()
        return update(method, lin, settings.dampings[0], settings.seed, settings.others)

    def scores(self, methods: tuple[str, ...]) -> list[Score]:
        """Return the scores of methods, from model and batch."""
        settings = self.settings
        return score_linearization(
            self.linearize(), methods, settings.dampings, settings.seed, others=settings.others
        )

    def pieces(self) -> dict[Piece, Timed]:
        """Return what is measured, but for the training step."""
        methods = self.settings.methods
        updates = {(UPDATE, one): partial(seconds, partial(self.update, one)) for one in methods}
        scores = {(SCORE, one): partial(seconds, partial(self.scores, (one,))) for one in methods}
        return {
            (FORWARD, ""): self.forward,
            (BACKWARD, ""): self.backward,
            (LINEARIZE, ""): partial(seconds, self.linearize),
            **updates,
            **scores,
            (SCORES, ""): partial(seconds, partial(self.scores, methods)),
        }


def measure_costs(
    task: Task,
    settings: Settings,
    repetitions: int = 5,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> CostTable:
    """Measure forward, backward, and every method's update and score on one batch of a task.

    Every piece of work is measured in turns with the training step in this process, and starts
    from model and batch: nothing is left over from the piece before.

    Args:
        task: its model, as initialised, and its training samples.
        settings: methods, their damping (the first), batch size, seed, dtype, micro-batch size,
            device, and what is made of parameters without factors.
        repetitions: how often to take every piece of work, after one that does not count.
        on_progress: called with the pieces done, their number, and the name of the next.

    Raises:
        EvalkitError: a setting is out of range, or the task cannot be scored.
    """
    check_request(settings.methods, settings.dampings, past=True, optimizer=True)
    for name in settings.methods:
        if not takes_batch_alone(parse(name)[0]):
            raise EvalkitError(
                f"expected methods that need nothing but a model and a batch, found '{name}', "
                "whose cost is that of its training too; leave it out"
            )
    if repetitions < 1:
        raise EvalkitError(
            f"expected repetitions of at least 1, found {repetitions}; set `repetitions` to 1 or "
            "more"
        )
    with user_code(f"the model of task '{task.name}'"), ExitStack() as stack:
        problem = _problem(task, settings)
        # What is left out is frozen for every piece of work, the training step included.
        lin, _ = stack.enter_context(problem.linearized())
        iterations = {score.method: score.iterations for score in problem.scores(settings.methods)}
        pieces = problem.pieces()
        total = (repetitions + 2) * len(pieces) + 1
        counter = itertools.count()

        def show(piece: Piece) -> None:
            if on_progress is not None:
                on_progress(next(counter), total, " ".join(filter(None, piece)))

        timings = in_turns(pieces, problem.step, repetitions, show)
        peaks = {}
        for piece, work in {(STEP, ""): problem.step, **pieces}.items():
            show(piece)
            problem.model.zero_grad()
            peaks[piece] = peak_mebibytes(work, lin.logits.device)
    rows = _rows(timings, peaks, iterations)
    return CostTable(rows, _provenance(task, settings, repetitions, lin, timings))


def write_costs(table: CostTable, folder: str | Path) -> None:
    """Write ``cost.csv`` and ``cost.json``.

    Raises:
        EvalkitError: the folder cannot be written.
    """
    folder = make_folder(folder)
    text = table.rows.to_csv(index=False, lineterminator="\n")
    write_atomically(folder / TABLE_FILE, text)
    write_atomically(folder / PROVENANCE_FILE, json.dumps(dict(table.provenance), indent=2) + "\n")


def _problem(task: Task, settings: Settings) -> _Problem:
    samples = samples_to_score(task, settings.batch_size)
    device = check_device(settings.device)
    dtype = None if settings.dtype is None else getattr(torch, settings.dtype)
    model = task.build_model(settings.seed).eval().to(device)
    raised = any(value.dtype in HALF for value in model.parameters())
    for value in itertools.chain(model.parameters(), model.buffers()):
        value.data = cast(value.data, dtype)
    samples = task.fit_labels(samples, model)
    inputs, targets = take_batch(samples, settings, 0)
    batch = Samples(tree_map(lambda leaf: cast(leaf, dtype), inputs), targets)
    problem = _Problem(model, batch, task.likelihood, settings, raised)
    return replace(problem, batch=Samples(batch.inputs, problem.checked_targets()))


def _rows(
    timings: Mapping[Piece, Timing],
    peaks: Mapping[Piece, float | None],
    iterations: Mapping[str, int | None],
) -> pd.DataFrame:
    times = [took for timing in timings.values() for took in timing.step_seconds]
    step = statistics.median(times)
    steps = {piece: timing.steps for piece, timing in timings.items()}
    order = [(FORWARD, ""), (BACKWARD, ""), (STEP, ""), *steps]
    steps[STEP, ""] = tuple(took / step for took in times)
    rows = []
    for piece in dict.fromkeys(order):
        low, middle, high = np.quantile(steps[piece], [0.25, 0.5, 0.75]).tolist()
        rows.append(
            Cost(
                work=piece[0],
                method=piece[1],
                steps=middle,
                steps_low=low,
                steps_high=high,
                ms=1e3 * step * middle,
                ms_low=1e3 * step * low,
                ms_high=1e3 * step * high,
                peak_mib=None if piece[0] == BACKWARD else peaks[piece],
                iterations=iterations.get(piece[1]),
            )
        )
    return frame_of(rows, Cost)


def _provenance(
    task: Task,
    settings: Settings,
    repetitions: int,
    lin: Linearization,
    timings: Mapping[Piece, Timing],
) -> dict[str, Any]:
    device = lin.logits.device
    used = {
        name: getattr(settings, name) for name in ("methods", "seed", "micro_batch_size", "others")
    }
    return {
        "evalkit": __version__,
        "versions": versions(),
        "task": task.name,
        "likelihood": task.likelihood,
        "num_samples": lin.num_samples,
        "num_params": lin.num_params,
        "repetitions": repetitions,
        **used,
        "damping": settings.dampings[0],
        "dtype": str(lin.logits.dtype).removeprefix("torch."),
        "device": str(device),
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "memory_gib": memory_gib(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
        "seconds": [
            {"work": work, "method": method, **asdict(timing)}
            for (work, method), timing in timings.items()
        ],
    }
