"""One batch scored as a study scores it, and once more in float64."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from evalkit.curvature.others import linearized
from evalkit.doctor.subject import Batch, Subject
from evalkit.errors import EvalkitError
from evalkit.evaluation.failures import memory_failures
from evalkit.evaluation.full_precision import full_precision
from evalkit.linearization import Linearization
from evalkit.linearization.sample_axis import long_leaves, part_of
from evalkit.scoring import score_linearization
from evalkit.storage.rows import Score
from evalkit.study.batches import batch_seed
from evalkit.updates.parser import parse
from evalkit.updates.registry import takes_optimizer, takes_past
from evalkit.work import threads_of


@dataclass(frozen=True, eq=False)
class Trial:
    """What scoring a batch has brought.

    Attributes:
        lin: of the batch, kept.
        left_out: the parameters that it leaves out.
        rows: as a study writes them, a row per method and damping.
        double: those of the first damping by a float64 evaluation from the start; None where the
            model cannot be evaluated in it, or already is.
        seconds: that linearization and rows took.
    """

    lin: Linearization
    left_out: tuple[str, ...]
    rows: tuple[Score, ...]
    double: tuple[Score, ...] | None
    seconds: float


def tried(methods: tuple[str, ...]) -> tuple[str, ...]:
    """Return the methods that a batch is tried with: those that need nothing but the batch."""
    names = ((method, parse(method)[0]) for method in methods)
    return tuple(m for m, name in names if not takes_past(name) and not takes_optimizer(name))


@contextmanager
def trial(subject: Subject, batch: Batch, micro_batch_size: int | None) -> Iterator[Trial]:
    """Provide the scores of a batch, and its linearization as long as the block lasts.

    Args:
        subject: the model and the settings of the study.
        batch: of its samples.
        micro_batch_size: samples whose graph is held at a time.

    Raises:
        EvalkitError: the batch cannot be scored.
    """
    settings = subject.settings
    methods = tried(settings.methods) or ("sgd",)
    seed = batch_seed(settings.seed, 0, "methods")
    given = batch.inputs, batch.targets, subject.likelihood, micro_batch_size, settings.dtype
    started = time.perf_counter()
    with (
        memory_failures(),
        full_precision(),
        linearized(subject.model, *given, settings.others) as (lin, left_out),
        threads_of(lin),
    ):
        again, others = settings.dtype is None, settings.others
        rows = score_linearization(
            lin, methods, settings.dampings, seed, again=again, others=others
        )
        seconds = time.perf_counter() - started
        double = None
        if lin.logits.dtype == torch.float32:
            try:
                other = lin.in_float64()
                double = tuple(
                    score_linearization(other, methods, settings.dampings[:1], seed, others=others)
                )
                del other
            except EvalkitError:  # of a forward that has no float64
                pass
        yield Trial(lin, left_out, tuple(rows), double, seconds)


def first_of(batch: Batch, size: int) -> Batch:
    """Return the first samples of a batch, as they are in it."""
    split, rows = long_leaves(batch.inputs, batch.size), slice(0, size)
    return Batch(part_of(batch.inputs, split, rows), batch.targets[rows], size)
