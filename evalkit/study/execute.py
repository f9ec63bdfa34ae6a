"""Execution of a unit: a model and a batch in, rows out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.curvature import PastTask
from evalkit.curvature.others import linearized
from evalkit.errors import EvalkitError
from evalkit.evaluation.full_precision import full_precision
from evalkit.evaluation.given import Inputs
from evalkit.linearization import Linearization
from evalkit.linearization.split import Split
from evalkit.scoring import score_linearization
from evalkit.scoring.metrics import batch_metrics
from evalkit.settings import Settings
from evalkit.storage.columns import Table, table_of
from evalkit.storage.rows import Batch, Cell, Score
from evalkit.study.batches import batch_seed, data_hash
from evalkit.study.plan import Unit
from evalkit.tasks.user_code import user_code


@dataclass(frozen=True, eq=False)
class Rows:
    """What a unit results in.

    Attributes:
        scores: a row per method and damping.
        batches: one row, of what no method changes.
    """

    scores: Table
    batches: Table


def execute(
    model: nn.Module,
    batch: tuple[Inputs, Tensor],
    likelihood: str,
    settings: Settings,
    unit: Unit,
    task: str,
    on_iteration: Callable[[int, float], None] | None = None,
    on_gradient: Callable[[Linearization, tuple[str, ...]], None] | None = None,
    past: PastTask | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    split: Split | None = None,
) -> Rows:
    """Return the rows of a unit; they depend on nothing but the arguments.

    Args:
        model: holds the checkpoint of the unit; in eval mode, on the device of the batch.
        batch: inputs and targets of the batch of the unit.
        likelihood: what the model's outputs mean.
        settings: the order of methods and dampings, seed, precision.
        unit: what is scored, and what the rows are keyed by.
        task: what sentences about errors call the task.
        on_iteration: called by iterative methods with the iteration and its gamma.
        on_gradient: called before the first method, when the gradient is known, with the names of
            the parameters that are left out.
        past: past tasks, for methods that have them as an input.
        optimizer: of the training, for methods that have it as an input.
        split: the processes that share the samples of the batch, where this one leads them.

    Raises:
        EvalkitError: the batch cannot be scored; the sentence names the cell.
    """
    cell = unit.cell
    place = f"checkpoint '{cell.checkpoint}', batch {cell.batch}"
    try:
        with user_code(f"the scoring of task '{task}'"), full_precision():
            digest = data_hash(*batch)
            given = model, *batch, likelihood, settings.micro_batch_size, settings.dtype
            with linearized(*given, settings.others, split) as (lin, left_out):
                if on_gradient is not None:
                    _ = lin.gradient
                    on_gradient(lin, left_out)
                rows = _scores(lin, settings, unit, on_iteration, past, optimizer)
                metrics = batch_metrics(lin, digest)
    except EvalkitError as error:
        raise EvalkitError(f"{place}: {error}") from error
    return Rows(_keyed(cell, rows, Score), _keyed(cell, [metrics], Batch))


def _scores(
    lin: Linearization,
    settings: Settings,
    unit: Unit,
    on_iteration: Callable[[int, float], None] | None,
    past: PastTask | None,
    optimizer: torch.optim.Optimizer | None,
) -> list[Score]:
    """Return the rows of a unit from its linearization."""
    # The labels that methods sample are paired between checkpoints too.
    seed, rows = batch_seed(settings.seed, unit.cell.batch, "methods"), []
    for methods, dampings in _blocks(settings, unit.pairs):
        again = settings.dtype is None
        rows += score_linearization(
            lin, methods, dampings, seed, on_iteration, again, settings.others, past, optimizer
        )
    return rows


def _blocks(
    settings: Settings, pairs: Collection[tuple[str, float]]
) -> list[tuple[list[str], list[float]]]:
    """Return methods with the dampings that they have in common, which cover the pairs.

    The pairs of a whole request are one block, as they are where a run is not extended.
    """
    blocks: dict[tuple[float, ...], list[str]] = {}
    for method in settings.methods:
        dampings = tuple(d for d in settings.dampings if (method, d) in pairs)
        if dampings:
            blocks.setdefault(dampings, []).append(method)
    return [(methods, list(dampings)) for dampings, methods in blocks.items()]


def _keyed(cell: Cell, rows: Sequence[Any], kind: type) -> Table:
    """Return rows as a table, behind the columns of their cell."""
    return {**table_of([cell] * len(rows), Cell), **table_of(rows, kind)}
