"""Execution of a unit: a model and a batch in, rows out, and why rows are missing."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.curvature import PastTask
from evalkit.curvature.others import linearized
from evalkit.errors import EvalkitError, TooLittleMemoryError
from evalkit.evaluation.full_precision import full_precision
from evalkit.evaluation.given import Inputs
from evalkit.linearization import Linearization
from evalkit.linearization.split import Split
from evalkit.scoring import score_linearization
from evalkit.scoring.metrics import batch_metrics, undefined_metrics
from evalkit.scoring.rows import undefined_score
from evalkit.settings import Settings
from evalkit.storage.columns import Table, table_of
from evalkit.storage.lost_rows import Pair
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
        failed: why there is no row, by the method and damping.
        micro_batch_size: samples at a time that memory was enough for, where those that were asked
            for were too many.
    """

    scores: Table
    batches: Table
    failed: Mapping[Pair, str] = field(default_factory=dict)
    micro_batch_size: int | None = None

    @property
    def reason(self) -> str:
        """Why rows are missing, in a sentence that names the methods; empty where all are there."""
        return _by_method(self.failed)


@dataclass(frozen=True, eq=False)
class _Given:
    """What rows depend on beside the settings and the unit; see :func:`execute`."""

    task: str
    model: nn.Module
    batch: tuple[Inputs, Tensor]
    likelihood: str
    on_iteration: Callable[[int, float], None] | None
    on_gradient: Callable[[Linearization, tuple[str, ...]], None] | None
    past: PastTask | None
    optimizer: torch.optim.Optimizer | None
    split: Split | None


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

    Where memory runs out the batch is evaluated again, half as many samples at a time, down to one:
    the rows are the same but for rounding. A method that cannot be scored costs its own rows alone.

    Args:
        model: holds the checkpoint of the unit; in eval mode, on the device of the batch.
        batch: inputs and targets of the batch of the unit.
        likelihood: what the model's outputs mean.
        settings: the order of methods and dampings, seed, precision.
        unit: what is scored, and what the rows are keyed by.
        task: what sentences about errors call the task.
        on_iteration: called by iterative methods with the iteration and its gamma.
        on_gradient: called before the first method, when the gradient is known, with the names of
            the parameters that are left out; again where the batch is evaluated again.
        past: past tasks, for methods that have them as an input.
        optimizer: of the training, for methods that have it as an input.
        split: the processes that share the samples of the batch, where this one leads them.

    Raises:
        EvalkitError: nothing of the batch can be scored.
    """
    given = _Given(
        task, model, batch, likelihood, on_iteration, on_gradient, past, optimizer, split
    )
    size, lacked = None, ""
    while True:
        part = settings if size is None else replace(settings, micro_batch_size=size)
        at_once = min(part.micro_batch_size or part.batch_size, part.batch_size)
        try:
            with _code(given), full_precision():
                rows = _rows(given, part, unit, smallest=at_once == 1)
            break
        except TooLittleMemoryError as error:
            lacked = lacked or str(error)
            if at_once == 1:
                raise
        except EvalkitError as error:
            if lacked:  # what a part cannot do is no matter of the batch
                raise TooLittleMemoryError(lacked) from error
            raise
        size = (at_once + 1) // 2
        _free_memory()  # once the error is gone, and with it what its frames hold
    if lacked:
        rows = replace(rows, failed=dict.fromkeys(rows.failed, lacked), micro_batch_size=size)
    return rows


def _code(given: _Given) -> AbstractContextManager[None]:
    """Turn what code of the user or a solver raises into a sentence."""
    return user_code(f"the scoring of task '{given.task}'")


def _free_memory() -> None:
    """Give back what a failed evaluation has left."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _rows(given: _Given, settings: Settings, unit: Unit, smallest: bool) -> Rows:
    """Return the rows of a unit, evaluated as the settings say.

    Args:
        given: model, batch and more.
        settings: with the micro-batch size.
        unit: what is scored.
        smallest: whether the batch cannot be evaluated in smaller parts.

    Raises:
        EvalkitError: there are none.
    """
    digest = data_hash(*given.batch)
    taken = given.model, *given.batch, given.likelihood
    how = settings.micro_batch_size, settings.dtype, settings.others
    with linearized(*taken, *how, given.split) as (lin, left_out):
        if given.on_gradient is not None:
            _ = lin.gradient
            given.on_gradient(lin, left_out)
        _ = lin.gram  # what no method can do without fails once, not once for each
        rows: list[Score] = []
        failed: dict[Pair, str] = {}
        for methods, dampings in _blocks(settings, unit.pairs):
            for found in _scores(lin, given, settings, unit, (methods, dampings), smallest):
                rows += found.rows
                failed |= found.failed
        if not rows:
            told = set(failed.values())
            raise EvalkitError(_by_method(failed) if len(told) > 1 else told.pop())
        metrics = batch_metrics(lin, digest)
    if undefined := undefined_metrics(metrics):
        raise EvalkitError(
            f"expected finite measures of the batch, found {undefined}; score in float64 "
            "(`dtype=float64`), or check the model at this batch"
        )
    cell = unit.cell
    return Rows(_keyed(cell, rows, Score), _keyed(cell, [metrics], Batch), failed)


@dataclass(frozen=True)
class _Found:
    """Rows of methods, and sentences in place of those that there are none of."""

    rows: list[Score]
    failed: dict[Pair, str]


Block = tuple[list[str], list[float]]
"""Methods, and dampings that each is scored at."""


def _scores(
    lin: Linearization, given: _Given, settings: Settings, unit: Unit, block: Block, smallest: bool
) -> Iterator[_Found]:
    """Yield the rows of a block, of fewer at a time where it fails: its methods, then dampings."""
    methods, dampings = block
    # The labels that methods sample are paired between checkpoints too.
    seed = batch_seed(settings.seed, unit.cell.batch, "methods")
    try:
        with _code(given):
            rows = score_linearization(
                lin,
                methods,
                dampings,
                seed,
                given.on_iteration,
                settings.dtype is None,
                settings.others,
                given.past,
                given.optimizer,
                keep_float32=smallest,
            )
    except EvalkitError as error:
        if isinstance(error, TooLittleMemoryError) and not smallest:
            raise
        if len(methods) * len(dampings) == 1:
            yield _Found([], {(methods[0], dampings[0]): str(error)})
            return
        apart = [([name], dampings) for name in methods]
        if len(methods) == 1:
            apart = [(methods, [damping]) for damping in dampings]
        for one in apart:
            yield from _scores(lin, given, settings, unit, one, smallest)
        return
    sentences = {(row.method, row.damping): undefined_score(row) for row in rows}
    yield _Found(
        [row for row in rows if not sentences[row.method, row.damping]],
        {pair: sentence for pair, sentence in sentences.items() if sentence},
    )


def _by_method(failed: Mapping[Pair, str]) -> str:
    """Return sentences behind the methods that they are about."""
    methods: dict[str, dict[str, None]] = {}
    for (method, _), sentence in failed.items():
        methods.setdefault(sentence, {})[method] = None
    return " / ".join(f"{', '.join(names)}: {sentence}" for sentence, names in methods.items())


def _blocks(settings: Settings, pairs: Collection[Pair]) -> list[Block]:
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
