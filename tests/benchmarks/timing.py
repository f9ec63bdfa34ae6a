"""Costs in training steps, measured in turns, and memory in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Work = Callable[[], object]


def training_step(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Run one forward and backward."""
    model.zero_grad()
    cross_entropy(model(inputs), targets, reduction="sum").backward()


def seconds(work: Work) -> float:
    """Return the wall time of one call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_steps(work: Mapping[str, Work], step: Work, repetitions: int) -> dict[str, float]:
    """Return the median cost of each piece of work in training steps.

    Steps are timed before and after each piece, so that other load on the machine hits both.
    """
    for warm in (step, *work.values()):
        warm()
    ratios: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repetitions):
        for name, run in work.items():
            before = [seconds(step) for _ in range(3)]
            cost = seconds(run)
            after = [seconds(step) for _ in range(3)]
            ratios[name].append(cost / statistics.median(before + after))
    return {name: statistics.median(values) for name, values in ratios.items()}


def peak_megabytes(
    name: str, work: Callable[[str], object], warm: Callable[[str], object]
) -> float:
    """Return the memory that ``work(name)`` takes above what ``warm(name)`` has taken, in MB.

    Both run in a fresh process, where no earlier work has raised the peak.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, work, warm))


def _peak(name: str, work: Callable[[str], object], warm: Callable[[str], object]) -> float:
    warm(name)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before = _memory()
    work(name)
    return _memory() - before


def _memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
