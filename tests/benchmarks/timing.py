"""Costs in training steps, measured in turns, and memory in a process of its own."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evalkit.bench.timing import Work, in_turns, seconds

T = TypeVar("T")


def training_step(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Run one forward and backward."""
    model.zero_grad()
    cross_entropy(model(inputs), targets, reduction="sum").backward()


def in_steps(work: Mapping[str, Work], step: Work, repetitions: int) -> dict[str, float]:
    """Return the median cost of each piece of work in training steps."""
    pieces = {name: partial(seconds, run) for name, run in work.items()}
    timings = in_turns(pieces, partial(seconds, step), repetitions)
    return {name: statistics.median(timing.steps) for name, timing in timings.items()}


def peak_megabytes(load: Callable[[str], Any], name: str, work: Callable[..., object]) -> float:
    """Return the memory that ``work(*load(name))`` takes above what is loaded, in MB.

    It runs in a fresh process, where no earlier work has left memory behind.
    """
    return in_fresh_process(_peak, load, name, work)


def in_fresh_process(work: Callable[..., T], *arguments: object) -> T:
    """Return ``work(*arguments)`` from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


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
