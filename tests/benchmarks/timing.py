"""Costs in training steps, measured in turns, and memory in a process of its own."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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


def peak_megabytes(load: Callable[[str], Any], name: str, work: Callable[..., object]) -> float:
    """Return the memory that ``work(*load(name))`` takes above what is loaded, in MB.

    It runs in a fresh process, where no earlier work has left memory behind.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (load, name, work))


def _peak(load: Callable[[str], Any], name: str, work: Callable[..., object]) -> float:
    loaded = load(name)
    # Linux forgets the peak so far when a 5 is written here.
    Path("/proc/self/clear_refs").write_text("5")
    before = _megabytes("VmRSS")
    work(*loaded)
    return _megabytes("VmHWM") - before


def _megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
