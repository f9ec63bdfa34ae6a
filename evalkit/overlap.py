"""Batches that share samples: what intervals over such batches still say."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evalkit.counts import counted
from evalkit.storage.run_folder import Run

NOTEWORTHY = 3.0
"""How many times too narrow intervals become before a report says so."""


@dataclass(frozen=True)
class Overlap:
    """Batches drawn without repeats, each for itself, from the same samples.

    Attributes:
        batches: how many.
        batch_size: samples of each.
        training_samples: from which they were drawn.
    """

    batches: int
    batch_size: int
    training_samples: int

    @property
    def shared(self) -> float:
        """Share of its samples that a batch has in common with another, on average: n / N."""
        return self.batch_size / self.training_samples

    @property
    def narrowness(self) -> float:
        """How many times too narrow intervals are as statements on other samples of the same kind.

        The mean over B batches of n out of N samples varies by (1 - n / N) s^2 / (n B) from draw to
        draw, which the interval sees, and by s^2 / N from one set of N samples to another, which it
        cannot see: sqrt(1 + n B / (N - n)), infinite where a batch is all there is.
        """
        rest = self.training_samples - self.batch_size
        return math.sqrt(1 + self.batch_size * self.batches / rest) if rest > 0 else math.inf

    @property
    def note(self) -> str:
        """What a report says; empty where intervals mean about what they seem to."""
        if self.batches < 2 or self.narrowness < NOTEWORTHY:
            return ""
        start = (
            f"{self.batches} batches of {counted(self.batch_size, 'sample')} are drawn from "
            f"{self.training_samples}"
        )
        if math.isinf(self.narrowness):
            return f"{start}: all hold the same samples, so that intervals mean nothing."
        return (
            f"{start}, {self.shared:.0%} of a batch are in any other: intervals speak of these "
            f"samples alone and are about {self.narrowness:.2g} times too narrow for others like "
            "them; score smaller batches, or use more samples."
        )


def overlap_of(batches: int, batch_size: int, training_samples: int) -> Overlap:
    """Return the overlap of batches as :func:`evalkit.study.batches.draw_batch` draws them.

    Args:
        batches: how many.
        batch_size: as asked for; all training samples where there are fewer.
        training_samples: from which they are drawn.
    """
    return Overlap(batches, min(batch_size, training_samples), training_samples)


def overlap(run: Run, training_samples: int | None = None) -> Overlap | None:
    """Return how far the batches of a run share their samples; None where that is unknown.

    Args:
        run: its tables.
        training_samples: from which batches were drawn; by default what ``run.json`` says.
    """
    known = training_samples or run.provenance.get("training_samples")
    if type(known) is not int or known < 1:
        return None
    counts = run.batches.groupby("checkpoint", sort=False)["batch"].nunique()
    return overlap_of(int(counts.max()), int(run.batches["num_samples"].max()), known)


def overlap_note(run: Run) -> str:
    """Return what overlapping batches mean for the intervals of a run; empty where they do not."""
    found = overlap(run)
    return found.note if found else ""
