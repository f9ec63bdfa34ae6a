"""A study whose batches are split over the processes of a group, as each process takes part in it.

Rank 0 runs the study: it plans, scores and writes as a process alone does, and tells the others
which unit is next. They load the same checkpoint and the same batch, and follow its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from evalkit.errors import EvalkitError
from evalkit.evaluation.given import Inputs
from evalkit.linearization.split import Split
from evalkit.study.batches import take_batch
from evalkit.study.faults import Attempt, Outcome
from evalkit.study.loaded import Loaded
from evalkit.study.opened import Opened
from evalkit.study.plan import Unit
from evalkit.updates.parser import parse
from evalkit.updates.registry import takes_past


def opened_together(split: Split, opening: Callable[[], Opened]) -> Opened:
    """Return a study as this process has opened it, once all have.

    Args:
        split: the processes.
        opening: opens it.

    Raises:
        EvalkitError: methods have past tasks as an input.
        Exception: opening it failed in some process; in all of them.
    """
    found: list[Opened] = []

    def compute() -> None:
        opened = opening()
        if opened.past is not None:
            names = [name for name in opened.settings.methods if takes_past(parse(name)[0])]
            raise EvalkitError(
                f"expected methods whose batches can be split over processes, found "
                f"{', '.join(names)}, which has past tasks as an input; leave it out, or "
                "`split_batch`"
            )
        found.append(replace(opened, split=split))

    split.together(compute)
    return found[0]


def follow_study(opened: Opened, split: Split) -> None:
    """Follow rank 0 through the units of a study until it has no more.

    Raises:
        EvalkitError: rank 0 is gone.
    """
    loaded = Loaded(opened.model, opened.trajectory.checkpoints, None, lambda _: None)

    def prepare(unit: Unit) -> tuple[nn.Module, Inputs, Tensor]:
        loaded.hold(unit.cell.checkpoint)
        return opened.model, *take_batch(opened.samples, opened.settings, unit.cell.batch)

    while (unit := split.told()) is not None:
        split.follow(partial(prepare, unit))


@contextmanager
def leading(split: Split | None) -> Iterator[None]:
    """Tell the other processes at the end of the block, or after an error, that all is done."""
    try:
        yield
    except Exception:
        with suppress(EvalkitError):  # what went wrong first is what counts
            _end(split)
        raise
    else:
        _end(split)


def _end(split: Split | None) -> None:
    if split is not None:
        split.tell(None)


def led(attempt: Attempt, split: Split | None) -> Attempt:
    """Return what executes units, the other processes following.

    Args:
        attempt: executes them in this process.
        split: the processes.

    Raises:
        LostRankError: one is gone: that ends a study, whatever becomes of its units.
    """
    if split is None:
        return attempt
    processes = split

    def together(unit: Unit, shown: bool) -> Outcome:
        processes.tell(unit)
        with processes.leading():
            outcome = attempt(unit, shown)
        if processes.lost is not None:
            raise processes.lost
        return outcome

    return together
