"""Memory that a piece of work takes, as torch counts it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_mebibytes(work: Callable[[], object], device: torch.device) -> float | None:
    """Return the peak of what tensors hold during one call, above what they held before.

    On a GPU torch's allocator counts; on a CPU torch's profiler lists every block that is taken and
    given back. Both leave out what libraries allocate behind torch's back, and are the same every
    time. None for other devices.

    Args:
        work: the call.
        device: where it computes.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return _peak_of_blocks(work) / 2**20 if device.type == "cpu" else None


def _peak_of_blocks(work: Callable[[], object]) -> int:
    """Return the peak of bytes taken less bytes given back, from the profiler's events."""
    with _without_announcements(), tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            work()
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    blocks = [event for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for block in sorted(blocks, key=lambda event: event["ts"]):
        held += block["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _without_announcements() -> Iterator[None]:
    """Keep the profiler's own lines, which no setting turns off, from standard error."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
