"""Units in several processes, for models so small that threads of torch have nothing to share.

Each process has one thread and, since it is forked, the model and the samples of this one. A unit's
rows depend on the unit alone, so that they are the same to the last digit however many there are.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from signal import SIG_IGN, SIGINT, SIGTERM, signal
from typing import Any

import torch
from torch import nn

from evalkit import work
from evalkit.counts import counted
from evalkit.errors import EvalkitError
from evalkit.linearization import linearize
from evalkit.machine import end_with_parent
from evalkit.settings import Settings
from evalkit.study.batches import take_batch
from evalkit.study.faults import Failure, Outcome
from evalkit.study.plan import Unit
from evalkit.tasks import Samples
from evalkit.tasks.samples import ItemSamples

FEW_SAMPLES = 2
"""Samples that show how large a model is."""

FEWEST = 4
"""Units for each process, at least: to start one takes as long as a unit."""

MOST = 16
"""Processes, at most: each has intermediate results of its own."""

Execute = Callable[[Unit, bool], Outcome]
"""Makes the rows of a unit; whether iterations may be shown, as by one process alone."""

Claims = Any
"""A number for each unit, shared by all processes: who executes it, 0 before and after."""

_here: list[tuple[Execute, Claims]] = []
"""What this process executes units with, where it is one of several, and where it says so."""


def is_small(
    model: nn.Module, samples: Samples | ItemSamples, likelihood: str, settings: Settings
) -> bool:
    """Return whether a model is so small that threads of torch gain nothing.

    A few samples tell, so that nothing is lost where it is large.

    Args:
        model: in eval mode, on the device of the batch.
        samples: that batches are drawn from.
        likelihood: what the model's outputs mean.
        settings: the settings of the study.
    """
    if torch.device(settings.device).type != "cpu":
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said again when the batch is scored
            few = replace(settings, batch_size=min(FEW_SAMPLES, settings.batch_size))
            lin = linearize(model, *take_batch(samples, few, 0), likelihood, dtype=settings.dtype)
            found, parts = work.product_work(lin, settings.batch_size), 1
            if settings.micro_batch_size is not None:
                parts = math.ceil(settings.batch_size / settings.micro_batch_size)
            return work.is_small(replace(found, calls=parts * found.calls))
    except Exception:  # of the user's data and model, told in a sentence when the batch is scored
        return False


def gains_from_processes(
    model: nn.Module, samples: Samples | ItemSamples, likelihood: str, settings: Settings
) -> bool:
    """Return whether a study is sooner done by processes of one thread than by this one's threads.

    Where this one has a single thread, as ``OMP_NUM_THREADS=1`` asks for, the study stays in it.

    Args:
        model: as in :func:`is_small`.
        samples: that batches are drawn from.
        likelihood: what the model's outputs mean.
        settings: the settings of the study.
    """
    return torch.get_num_threads() > 1 and is_small(model, samples, likelihood, settings)


def shared_by(units: int, processes: int) -> int:
    """Return how many processes share some units, of so many that may."""
    return max(1, min(processes, units // FEWEST, MOST))


@contextmanager
def executed(
    units: Iterable[Unit], execute: Execute, processes: int
) -> Iterator[Iterator[tuple[Unit, Outcome]]]:
    """Provide the rows of some units as they are made, the first of them by this process.

    Processes are forked before that, since torch takes no gradient in a fork of a process that has
    taken one.

    Args:
        units: what is executed, in this order where there is one process.
        execute: makes the rows.
        processes: that share the units.

    A process that is ended from outside, as the kernel does where memory is short, costs the unit
    that it was at; those left are executed by this process.

    Raises:
        EvalkitError: a unit cannot be executed, or processes cannot be started.
    """
    if processes < 2:
        yield ((unit, execute(unit, True)) for unit in units)
        return
    units = list(units)
    alone = ((unit, execute(unit, True)) for unit in units)
    with suppress(ImportError):  # torch's first gradient does, which takes each process a second
        importlib.import_module("torch.fx.experimental.symbolic_shapes")
    context = multiprocessing.get_context("fork")
    claims = context.Array("q", len(units), lock=False)
    others, workers = multiprocessing.active_children(), list[BaseProcess]()
    pool = ProcessPoolExecutor(processes, context, _begin, initargs=(execute, claims))
    try:
        able = pool.submit(_takes_gradients)  # which forks all of them
        workers += [one for one in multiprocessing.active_children() if one not in others]
        # Code of the user may have taken a gradient.
        yield _shared(pool, workers, units, execute, claims) if able.result() else alone
    except BrokenProcessPool as error:
        raise EvalkitError(
            f"expected {processes} processes to score, found that one was ended, as by too little "
            "memory; score in one, with OMP_NUM_THREADS=1 in the environment"
        ) from error
    except BaseException:
        for worker in workers:  # their units are for nobody
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _shared(
    pool: ProcessPoolExecutor,
    workers: Sequence[BaseProcess],
    units: Sequence[Unit],
    execute: Execute,
    claims: Claims,
) -> Iterator[tuple[Unit, Outcome]]:
    futures = {pool.submit(_execute, place, units[place]): place for place in range(1, len(units))}
    yield units[0], execute(units[0], False)
    lost = []
    for future in as_completed(futures):
        try:
            rows, caught = future.result()
        except BrokenProcessPool:
            lost.append(futures[future])
            continue
        for message, category in caught:
            warnings.warn(message, category, stacklevel=2)
        yield units[futures[future]], rows
    if lost:
        pool.shutdown()  # until all of its processes have ended
        ended = {one.pid: one.exitcode for one in workers if one.exitcode not in (0, -SIGTERM)}
        yield from _without_processes(units, sorted(lost), execute, claims, ended)


def _without_processes(
    units: Sequence[Unit],
    lost: Sequence[int],
    execute: Execute,
    claims: Claims,
    ended: Mapping[int | None, int | None],
) -> Iterator[tuple[Unit, Outcome]]:
    """Yield what becomes of units whose processes are gone.

    Those that a process was ended at would end this one too, maybe: they have failed.

    Args:
        units: all of them.
        lost: the places of those without rows.
        execute: makes rows.
        claims: who was at which unit.
        ended: the processes that ended by themselves or from outside, with their exit status.
    """
    failed = [place for place in lost if claims[place] in ended]
    warnings.warn(
        f"{len(failed)} of {counted(len(lost), 'unit')} left could not be scored, since processes "
        "were ended, as by too little memory; the others are scored by one process",
        stacklevel=2,
    )
    for place in lost:
        if place not in failed:
            yield units[place], execute(units[place], False)
            continue
        status = ended[claims[place]]
        yield (
            units[place],
            Failure(
                f"expected a process that scores this unit, found that it was ended with status "
                f"{status}, as by too little memory; start again with OMP_NUM_THREADS=1 in the "
                "environment, which scores in one process, or with smaller `micro_batch_size`"
            ),
        )


def _begin(execute: Execute, claims: Claims) -> None:
    for name in (SIGINT, SIGTERM):  # of the whole group: the process that started this one ends it
        signal(name, SIG_IGN)
    end_with_parent()  # however that one ends
    torch.set_num_threads(1)
    _here.append((execute, claims))


def _takes_gradients() -> bool:
    try:
        torch.ones((), requires_grad=True).square().backward()
    except RuntimeError:
        return False
    return True


def _execute(place: int, unit: Unit) -> tuple[Outcome, list[tuple[str, type[Warning]]]]:
    """Return the rows of a unit, and what was warned of."""
    execute, claims = _here[0]
    claims[place] = os.getpid()
    with warnings.catch_warnings(record=True) as caught:
        rows = execute(unit, False)
    claims[place] = 0
    return rows, [(str(one.message), one.category) for one in caught]
