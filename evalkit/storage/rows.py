"""The rows of a run's tables: the fields of these classes are the columns, and say what they hold.

A type with ``None`` may be empty, as may any number that is not NEEDED.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NEEDED = {"needed": True}
"""Numbers that no row is without, and that are finite."""
SIGNED = {"signed": True}
"""Numbers that may be negative; every other is a size, a count or a share."""
LATER = {"later": True}
"""Columns that tables of earlier versions lack; they are read as empty ones."""
ARITHMETIC = {"mean": "arithmetic"}
GEOMETRIC = {"mean": "geometric"}
"""Columns that have a mean over batches, and which; the spread of a geometric one is a factor."""


@dataclass(frozen=True)
class Cell:
    """What the rows of a run are keyed by.

    Attributes:
        checkpoint: its name.
        step: optimiser steps taken.
        progress: share of training done, 0 to 1.
        batch: number of the batch, from 0.
    """

    checkpoint: str
    step: int = field(metadata=NEEDED)
    progress: float = field(metadata=NEEDED)
    batch: int = field(metadata=NEEDED)


@dataclass(frozen=True)
class Score:
    """A method at one damping on one batch: a row of ``scores.csv`` and of ``evalkit.score``.

    Attributes:
        method: its name, with settings as written.
        damping: lambda.
        gamma: sqrt(d^T F d) / |d^T g|, smaller is better.
        ratio: gamma / gamma of sgd on the same batch, below 1 is better than SGD.
        efficiency: gamma_floor / gamma, in [0, 1].
        fisher_norm: sqrt(d^T F d).
        slope: d^T g; negative means that the update ascends.
        norm: |d|.
        cosine_sgd: cosine of the angle between d and g.
        iterations: those of the solver; empty for methods without one.
        relative_residual: that of the solver's answer, recomputed; empty for methods without one.
        converged: whether the solver did; empty for methods without one.
        solver: ``"cg"``, ``"sketch"`` or ``"direct"``; empty for methods without one.
        error: estimate of the relative error of gamma; above :data:`evalkit.doubts.MARKED` the row
            is not to be relied on.
        dtype: the precision in which the row was found.
    """

    method: str
    damping: float = field(metadata=NEEDED)
    gamma: float = field(metadata=GEOMETRIC)
    ratio: float = field(metadata=GEOMETRIC)
    efficiency: float = field(metadata=GEOMETRIC)
    fisher_norm: float
    slope: float = field(metadata=SIGNED)
    norm: float
    cosine_sgd: float = field(metadata=SIGNED | ARITHMETIC)
    iterations: int | None
    relative_residual: float | None
    converged: bool | None
    solver: str | None = field(metadata=LATER)
    error: float = field(metadata=LATER)
    dtype: str = field(metadata=LATER)


@dataclass(frozen=True)
class Batch:
    """One batch at one checkpoint, whatever the method: a row of ``batches.csv``.

    Attributes:
        num_samples: N.
        loss: mean over the samples of the loss l_n (a sum over the sample's label positions).
        imbalance: largest over smallest norm of the per-sample gradients.
        logit_imbalance: the same of the logit gradients.
        target_probability: p(y_n | z_n), mean over samples; NaN for a density.
        gamma_floor: the bound below which no gamma can be.
        gram_rank: number of linearly independent per-sample gradients.
        data_sha256: hash of inputs and targets.
    """

    num_samples: int = field(metadata=NEEDED)
    loss: float = field(metadata=ARITHMETIC)
    imbalance: float = field(metadata=ARITHMETIC)
    logit_imbalance: float = field(metadata=ARITHMETIC)
    target_probability: float = field(metadata=ARITHMETIC)
    gamma_floor: float = field(metadata=GEOMETRIC)
    gram_rank: int
    data_sha256: str | None = field(metadata=LATER)
