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
        relative_residual: that of the solver's answer, recomputed; of a projection, what is left of
            its constraint; empty for methods without one.
        converged: whether the solver did; empty for methods without one.
        solver: ``"cg"``, ``"sketch"``, ``"direct"`` or ``"projection"``; empty for methods without
            one.
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
        micro_batch_size: samples that were evaluated at a time; N where the batch was not split.
    """

    num_samples: int = field(metadata=NEEDED)
    loss: float = field(metadata=ARITHMETIC)
    imbalance: float = field(metadata=ARITHMETIC)
    logit_imbalance: float = field(metadata=ARITHMETIC)
    target_probability: float = field(metadata=ARITHMETIC)
    gamma_floor: float = field(metadata=GEOMETRIC)
    gram_rank: int
    data_sha256: str | None = field(metadata=LATER)
    micro_batch_size: int | None = field(metadata=LATER)


@dataclass(frozen=True)
class Failure:
    """Why a batch at one checkpoint has no rows, or lacks some: a row of ``failures.csv``.

    Attributes:
        reason: the sentence of the error.
    """

    reason: str


@dataclass(frozen=True)
class MatrixError:
    """How far a method's matrix is from the exact Fisher matrix: a row of ``errors.csv``.

    Attributes:
        method: its name, with settings as written.
        block: the layer, or the parameter; ``all blocks`` for the block-diagonal matrix of all, and
            ``whole matrix`` for the Fisher matrix with what is between blocks.
        parameters: how many the block has, in all groups of a convolution.
        route: ``formed`` from the matrices themselves, ``gram`` from the inner products of the
            exact rows, ``probes`` for an estimate from random probes, ``identical`` for a block
            that is the exact one by construction, ``mixed`` for all blocks by several of these.
        frobenius: |F - F~|_F / |F|_F, Koroko's Error 1; groups of a convolution are summed over.
        low: lower end of what it may be, by rounding or by the spread of the probes (95%).
        high: upper end of the same.
        spectrum: |sv(F) - sv(F~)| / |sv(F)| of the singular values in falling order, Koroko's
            Error 2; empty where they are not found.
        off_diagonal: |F - blockdiag(F)|_F / |F|_F, for the whole matrix alone.
    """

    method: str
    block: str
    parameters: int = field(metadata=NEEDED)
    route: str
    frobenius: float
    low: float
    high: float
    spectrum: float
    off_diagonal: float


@dataclass(frozen=True)
class LayerScale:
    """The best scale of one layer of a direction, and what all scales gain: of ``scales.csv``.

    Attributes:
        method: its name, with settings as written.
        damping: lambda.
        block: the layer, or the parameter.
        scale: c_l of c = (D^T F D)^+ D^T g; empty where the layer's part of d moves no output.
        relative_scale: c_l divided by the best scale that all layers have in common.
        gamma: of d, the same in all rows of a direction.
        scaled_gamma: of D c.
        efficiency: gamma_floor / gamma.
        scaled_efficiency: gamma_floor / scaled_gamma.
        error: the stated error of gamma, as in ``scores.csv``.
    """

    method: str
    damping: float = field(metadata=NEEDED)
    block: str
    scale: float = field(metadata=SIGNED)
    relative_scale: float = field(metadata=SIGNED)
    gamma: float = field(metadata=GEOMETRIC)
    scaled_gamma: float = field(metadata=GEOMETRIC)
    efficiency: float = field(metadata=GEOMETRIC)
    scaled_efficiency: float = field(metadata=GEOMETRIC)
    error: float


@dataclass(frozen=True)
class TrainingStep:
    """One step of an optimiser while a task is trained: a row of ``history.csv``.

    Attributes:
        step: its number, from 1.
        epoch: the epoch that it is part of, from 1.
        progress: share of the steps taken, this one included.
        loss: mean loss per sample of the step's batch, before the step.
        learning_rate: that of the step, by the schedule.
        skipped: 1 where the optimiser left the step out, else 0.
    """

    step: int = field(metadata=NEEDED)
    epoch: int = field(metadata=NEEDED)
    progress: float = field(metadata=NEEDED)
    loss: float = field(metadata=SIGNED)
    learning_rate: float = field(metadata=NEEDED)
    skipped: int = field(metadata=NEEDED)
