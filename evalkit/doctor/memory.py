"""Whether a batch fits into memory, from the peaks of a few of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from evalkit.bench.memory import peak_mebibytes
from evalkit.counts import counted
from evalkit.doctor.finding import Finding
from evalkit.doctor.subject import FEW, Batch, Subject
from evalkit.doctor.trial import first_of, trial
from evalkit.errors import EvalkitError, memory_sentence
from evalkit.machine import gigabytes
from evalkit.updates.foreseen import free_on

_NAME = "memory"
SHARE = 0.8
"""Of what is free, at most: what libraries allocate behind torch's back is not counted."""
PAIR = 2
"""Micro-batches whose graphs are held at a time, where inner products of both are taken."""


@dataclass(frozen=True)
class Fit:
    """What fits.

    Attributes:
        finding: what is said of it.
        micro_batch_size: to score with, None for a whole batch.
    """

    finding: Finding
    micro_batch_size: int | None


@dataclass(frozen=True)
class Peaks:
    """Peaks of some samples scored at once, in bytes, by their number, from few to many.

    Of n samples the peak is the largest of several sums c + b n with c >= 0, of weights and of
    activations. So twice the samples take at most twice as much, and the last two peaks tell the
    line that it comes to lie on.
    """

    measured: tuple[tuple[int, float], ...]

    def bound(self, size: int) -> float:
        """Return what so many samples take at most, as long as they are more than measured."""
        largest, peak = self.measured[-1]
        return peak * max(1.0, size / largest)

    def expected(self, size: int) -> float:
        """Return what so many samples take by the line through the last two peaks."""
        largest, peak = self.measured[-1]
        if len(self.measured) < 2:
            return self.bound(size)
        before, less = self.measured[-2]
        return max(less, peak + (size - largest) * max(0.0, peak - less) / (largest - before))

    def most(self, limit: float) -> int:
        """Return how many samples fit into a limit, by that line; 0 for none."""
        fitting = [size for size, peak in self.measured if peak <= limit]
        if not fitting:
            return 0
        size = fitting[-1]
        while self.expected(2 * size) <= limit and 2 * size < 1 << 30:
            size *= 2
        step = size
        while step := step // 2:
            size += step if self.expected(size + step) <= limit else 0
        return size


def memory(subject: Subject) -> Fit:
    """Find whether a batch fits, and the micro-batch size that does where it does not.

    A few samples are scored while torch counts what is taken, and more only where their bound fits.
    Rows that are found again in float64 are part of it; what a few samples do not show, as formed
    rows of small models, is at most some tens of MiB.

    Args:
        subject: whose batch, or micro-batch, is planned.
    """
    size, asked = subject.batch.size, subject.settings.micro_batch_size
    held = size if asked is None or asked >= size else min(size, PAIR * asked)
    device = next(subject.model.parameters()).device
    free = free_on(device)
    peaks = _peaks(subject, held, device, None if free is None else SHARE * free)
    if peaks is None:
        return Fit(Finding(_NAME, "ok", f"torch does not count what it takes on {device}"), asked)
    needed = peaks.expected(held)
    numbers = {"bytes": int(needed), "free": free, "samples_held": held}
    whole = counted(held, "sample") if held == size else f"two micro-batches of {asked}"
    if free is None:
        return Fit(Finding(_NAME, "ok", f"{whole} take about {gigabytes(int(needed))}"), asked)
    there = f"of {gigabytes(free)} free on {device}"
    if needed <= SHARE * free:
        said = f"{whole} take about {gigabytes(int(needed))} {there}"
        return Fit(Finding(_NAME, "ok", said, numbers=numbers), asked)
    most = peaks.most(SHARE * free)
    said = f"{whole} take about {gigabytes(int(needed))}, more than is safe {there}"
    if not most:
        least, peak = peaks.measured[0]
        cure = (
            f"even {counted(least, 'sample')} {'takes' if least == 1 else 'take'} "
            f"{gigabytes(int(peak))}: free memory, freeze the largest layers, or take a machine "
            "with more"
        )
        return Fit(Finding(_NAME, "fail", said, cure, numbers), 1)
    micro = max(1, most // PAIR)
    numbers["micro_batch_size"] = micro
    cure = f"set `micro_batch_size={micro}`: the same numbers, in more time"
    return Fit(Finding(_NAME, "warn", said, cure, numbers), micro)


def _peaks(subject: Subject, held: int, device: torch.device, limit: float | None) -> Peaks | None:
    """Return the peaks of more and more samples, None where torch does not count."""
    found: tuple[tuple[int, float], ...] = ()
    size = min(2, held)
    while True:
        part = first_of(subject.batch, size)
        try:
            peak = peak_mebibytes(partial(_score, subject, part), device)
        except EvalkitError as error:
            ran_out = error.__cause__ is not None and memory_sentence(error.__cause__)
            if size == subject.batch.size or ran_out:
                raise
            # Of samples one after the other no part can be run: the whole batch tells.
            size = held = subject.batch.size
            continue
        if peak is None:
            return None
        found = (*found, (size, 2**20 * peak))
        peaks = Peaks(found)
        if size == held or (limit is None and size >= FEW):
            return peaks
        if size >= FEW and limit is not None and peaks.bound(held) <= limit:
            return peaks
        # As many as surely fit, but no more than a few where that is enough to tell.
        sure = held if limit is None else int(size * limit / max(1.0, found[-1][1]))
        following = min(held, max(FEW, sure) if size >= FEW else min(FEW, sure))
        if following <= size:
            return peaks
        size = following


def _score(subject: Subject, batch: Batch) -> None:
    with trial(subject, batch, None):
        pass
