"""The host waits for the device where CG decides whether to stop, and nowhere else inside it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import evalkit
from evalkit.bench.memory import peak_mebibytes
from tests.cuda.comparison import convolutions
from tests.support.other_device import NAME, Host

FEW, MANY = 5, 25
DECISIONS = 2
"""Of an iteration: the numbers that decide about a step, and the length of the residual."""

_WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls of the driver's library, as the profiler names them, in which the host waits."""


def test_cg_asks_for_the_numbers_that_decide_and_for_no_others(device: str) -> None:
    """A product of its own would be seen here: it would wait at every iteration more."""
    if device == "cpu":
        pytest.skip("the host does not wait for itself")
    lin = evalkit.linearize(*convolutions().on(device))
    counted = {"cuda": told_by_torch, NAME: asked_of_the_host}[device]
    iterate(lin, 3)
    more = counted(lambda: iterate(lin, MANY)) - counted(lambda: iterate(lin, FEW))
    assert more <= DECISIONS * (MANY - FEW)


def test_the_profiler_sees_no_other_wait(device: str) -> None:
    if device != "cuda":
        pytest.skip("the profiler sees the calls of a card's driver alone")
    lin = evalkit.linearize(*convolutions().on(device))
    iterate(lin, 3)
    more = seen_by_the_profiler(lambda: iterate(lin, MANY))
    more -= seen_by_the_profiler(lambda: iterate(lin, FEW))
    assert 0 < more <= DECISIONS * (MANY - FEW)


def iterate(lin: evalkit.Linearization, iterations: int) -> None:
    """Run so many iterations of CG, none of which is told to be the last by a tolerance."""
    found = evalkit.natural_gradient(lin, max_iterations=iterations, tolerance=0.0, solver="cg")
    assert found.iterations == iterations


def asked_of_the_host(work: Callable[[], None]) -> int:
    """Return how often the host asks the device that the CPU computes for."""
    before = Host.waits
    work()
    return Host.waits - before


def told_by_torch(work: Callable[[], None]) -> int:
    """Return how often torch says that the host waits."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in told)


def seen_by_the_profiler(work: Callable[[], None]) -> int:
    """Return in how many calls of the driver's library the host waits, copies to it included.

    A copy to the host is ``cudaMemcpyAsync`` with the wait behind it, which counts once.
    """
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
    return sum(one.count for one in profiler.key_averages() if one.key in _WAITING)


def test_memory_is_counted(device: str) -> None:
    if device == NAME:
        pytest.skip("nothing counts what a device takes that is written in Python")
    taken = peak_mebibytes(lambda: torch.ones(1 << 20, device=device), torch.device(device))
    assert taken is not None
    assert 4 <= taken <= 6
