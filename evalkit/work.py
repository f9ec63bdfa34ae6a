"""The cost model: what pieces of work take in time, so that the cheapest is decided in one place.

Work is counted in multiplications of matrix products and in operations, and becomes time through
rates. Those of the machine are found in milliseconds at the first use in a process and rounded to
powers of two, so that the same machine makes the same choice; ``run.json`` records them.

What touches the last digits of every score is decided by rates that are typical of machines, or by
multiplications alone (:func:`evalkit.layers.work.by_pairs`): the same everywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

import torch

from evalkit.layers.sketches import SIZE
from evalkit.linearization import Linearization
from evalkit.linearization.ruled_rows import row_kinds

MOST_OUTPUTS = 4096
"""Rows of a tangent kernel, at most: 128 MiB."""

MOST_SKETCHED = 2048
"""Those of a sketched one, at most: 512 MiB of columns in float32."""

SMALL = 0.01
"""Seconds of a product, by typical rates, below which a thread of torch is enough."""

CALLS = 100
"""Small operations of torch that a product of a linearization takes whatever the model."""

CALLS_OF_LAYER = 120
"""Those that it takes for each call of a layer: both ways through the graph, and Python's part."""

TOUCHED = 20
"""Multiplications of a matrix product in the time that one number of a large array takes to be read
and written."""


@dataclass(frozen=True)
class Work:
    """An amount of work.

    Attributes:
        single: multiplications of matrix products in float32.
        double: in float64.
        calls: small operations.
    """

    single: float = 0.0
    double: float = 0.0
    calls: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.single + other.single, self.double + other.double, self.calls + other.calls
        )

    def __rmul__(self, times: float) -> Work:
        return Work(times * self.single, times * self.double, times * self.calls)


IMPOSSIBLE = Work(calls=math.inf)
"""Of what would need too much memory."""


@dataclass(frozen=True)
class Rates:
    """How fast a machine works.

    Attributes:
        single: multiplications of float32 matrix products in a second.
        double: the same in float64.
        calls: small operations in a second.
    """

    single: float
    double: float
    calls: float

    def seconds(self, work: Work) -> float:
        """Return the time that some work takes."""
        return work.single / self.single + work.double / self.double + work.calls / self.calls


_AGREED: ContextVar[Rates | None] = ContextVar("agreed", default=None)

TYPICAL = Rates(single=2.0**36, double=2.0**35, calls=2.0**19)
"""Of one core of a server."""


def machine_rates(device: torch.device) -> Rates:
    """Return the rates of a device, measured once in a process: some 20 ms.

    Each is the best of several short repetitions in the time of this thread, which other processes
    take no part of, and is rounded to a power of two, that of operations to one of four: it varies
    most. Matrix products are taken to gain from every thread of torch.
    """
    agreed = _AGREED.get()
    if agreed is not None:
        return agreed
    return _measured(device, torch.get_num_threads() if device.type == "cpu" else 1)


@contextmanager
def agreed_rates(rates: Rates) -> Iterator[None]:
    """Let the machine have some rates within the block, whatever it would measure.

    What is chosen by rates, such as the solver of the natural gradient, is then the same in all
    processes and starts that share a study, and so are their rows to the last digit.
    """
    token = _AGREED.set(rates)
    try:
        yield
    finally:
        _AGREED.reset(token)


@cache
def _measured(device: torch.device, threads: int) -> Rates:
    """Return the rates of a device with so many threads of torch, each as fast as one alone.

    Several that wait for each other beside a busy process would say more of that than of the
    machine.
    """
    size = 256 if device.type == "cpu" else 2048  # small and large enough for a millisecond
    few = torch.ones(4, device=device)

    def operations() -> None:
        for _ in range(200):
            few + few

    def product(dtype: torch.dtype) -> Callable[[], object]:
        matrix = torch.ones(size, size, dtype=dtype, device=device)
        return lambda: matrix @ matrix

    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        single, double = (
            _rounded(threads * size**3 / _least_time(product(dtype), device))
            for dtype in (torch.float32, torch.float64)
        )
        return Rates(single, double, _rounded(200 / _least_time(operations, device), step=4))
    finally:
        torch.set_num_threads(kept)


def _least_time(work: Callable[[], object], device: torch.device) -> float:
    """Return the least time of a few repetitions, after one that does not count."""
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    least = math.inf
    for repetition in range(16):
        _wait(device)
        start = clock()
        work()
        _wait(device)
        least = min(least, clock() - start) if repetition else least
    return max(least, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _rounded(rate: float, step: int = 2) -> float:
    """Return the nearest power of a step."""
    return float(step) ** round(math.log(rate, step))


def multiplied(lin: Linearization, count: float) -> Work:
    """Return multiplications in the precision of the evaluation."""
    return Work(double=count) if lin.logits.dtype == torch.float64 else Work(single=count)


def product_work(lin: Linearization, samples: int | None = None) -> Work:
    """Return the work of a product J J^T c: two passes and the weights' part.

    Args:
        lin: the model and batch.
        samples: N of a batch to foresee it for, of which this one has some; None for this one.
    """
    uses, samples = lin.batches[0].recording.uses, samples or lin.num_samples
    total = 2 * _pass_work(lin) * samples / lin.num_samples
    total += sum(use.layer.work.kernel_product(samples) for use in uses)
    return multiplied(lin, total) + Work(calls=_calls(lin))


def is_small(work: Work) -> bool:
    """Return whether a model with products of such work is so small that threads gain nothing."""
    return TYPICAL.seconds(work) < SMALL


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch have so many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_of(lin: Linearization) -> AbstractContextManager[None]:
    """Let torch have one thread within the block where a model is small, on the CPU.

    Several gain nothing there, and beside busy processes wait for each other many times as long as
    they work.
    """
    small = lin.logits.device.type == "cpu" and is_small(product_work(lin))
    return threads(1 if small else torch.get_num_threads())


def kernel_work(lin: Linearization, draws: int | None = None) -> Work:
    """Return the work that forms J J^T: a pass for each of M outputs, and each layer's part.

    Args:
        lin: the model and batch.
        draws: K, where J J_n^T c_kn is formed for so many cotangents of each sample instead.
    """
    samples, outputs = lin.num_samples, lin.logits[0].numel()
    columns = outputs if draws is None else draws
    if samples * outputs > MOST_OUTPUTS:
        return IMPOSSIBLE
    recording = lin.batches[0].recording
    passes = outputs if draws is None else outputs + draws
    entries = samples**2 * outputs * columns
    inner = 0.0
    for use in recording.uses:
        products = use.layer.work.inner_products(samples, outputs, columns)
        inner += products + 6 * TOUCHED * entries
    items = recording.parameters.items()
    unruled = sum(value.numel() for name, value in items if name not in recording.ruled)
    passing = multiplied(lin, passes * _pass_work(lin)) + Work(calls=passes * _calls(lin) / 2)
    return passing + Work(double=inner + entries * unruled)


def sketch_work(lin: Linearization) -> Work:
    """Return the work of a sketch.

    It is impossible where the matrix would be too large, or most parameters would be left out.
    """
    outputs, size = lin.logits[0].numel(), lin.logits.numel()
    recording = lin.batches[0].recording
    covered = sum(recording.parameters[name].numel() for name in row_kinds(recording))
    if size > MOST_SKETCHED or 2 * covered < recording.num_params:
        return IMPOSSIBLE
    total = outputs * _pass_work(lin)
    total += sum(use.layer.work.formed(size, SIZE.inputs) for use in recording.uses)
    columns = min(covered, SIZE.columns * size)
    total += 0.625 * size**2 * columns  # blocks above the diagonal are copied
    return multiplied(lin, total) + Work(calls=outputs * _calls(lin))


def factor_work(lin: Linearization) -> Work:
    """Return the work of the matrix H of logit space and its Cholesky factor."""
    size = lin.logits.numel()
    return Work(double=size**3 / 3 + 12 * TOUCHED * size**2)


def solve_work(lin: Linearization) -> Work:
    """Return the work of one solve with the factor, whose triangles are read twice."""
    return Work(double=5 * TOUCHED * lin.logits.numel() ** 2, calls=CALLS)


def _pass_work(lin: Linearization) -> float:
    """Return the multiplications of a pass through the model, forward or backward.

    A layer with (in, out) weights and T positions takes N T in out.
    """
    recording = lin.batches[0].recording
    return recording.pass_work * lin.num_samples / len(recording.logits)


def _calls(lin: Linearization) -> float:
    """Return the small operations of a product."""
    return CALLS + CALLS_OF_LAYER * len(lin.batches[0].recording.uses) * len(lin.batches)
