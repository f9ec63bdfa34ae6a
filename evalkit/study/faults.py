"""Units that fail: which of them end a study, and which it goes on without.

What fails for every unit, such as a setting that the model does not allow, has to end a start
before it costs hours; what fails for one, such as a checkpoint that turned unreadable or a batch
with a sample that is no number, must cost that unit alone. The rule: until some unit has had a row
of everything that was asked for, in this start or an earlier one, a unit that fails is followed by
one of another checkpoint, or of another batch where there is but one checkpoint. If that fails too
the start ends with the sentence of the first. Else the failure is recorded and the rest goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from evalkit.errors import EvalkitError
from evalkit.settings import Settings
from evalkit.storage.lost_rows import Cell, Pair
from evalkit.study.execute import Rows
from evalkit.study.plan import Unit
from evalkit.tasks.user_code import user_code


@dataclass(frozen=True)
class Failure:
    """A unit without rows.

    Attributes:
        reason: a sentence.
    """

    reason: str


Outcome = Rows | Failure
"""What becomes of a unit; :attr:`reason` of either is empty where every row is there."""
Attempt = Callable[[Unit, bool], Outcome]
"""Makes the rows of a unit if it can; whether iterations may be shown."""


def attempted(execute: Callable[[Unit, bool], Rows]) -> Attempt:
    """Return what executes units and gives back a failure where that raises a sentence."""

    def attempt(unit: Unit, shown: bool) -> Outcome:
        try:
            with user_code(f"the scoring of {unit.place}"):
                return execute(unit, shown)
        except EvalkitError as error:
            return Failure(str(error))

    return attempt


def is_proven(settings: Settings, finished: Mapping[Cell, Collection[Pair]]) -> bool:
    """Return whether everything that is asked for has been scored at some cell.

    Args:
        settings: methods and dampings.
        finished: those that each finished cell has rows of.
    """
    asked = set(itertools.product(settings.methods, settings.dampings))
    return any(asked.issubset(pairs) for pairs in finished.values())


def settled(
    made: Iterable[tuple[Unit, Outcome]], units: Sequence[Unit], attempt: Attempt, proven: bool
) -> Iterator[tuple[Unit, Outcome]]:
    """Yield what becomes of units, each once.

    Args:
        made: units with what became of them.
        units: all that are left, of which another is tried where the first one fails.
        attempt: tries it.
        proven: whether an earlier start has scored everything, see :func:`is_proven`.

    Raises:
        EvalkitError: the first unit and another one fail.
    """
    tried: Cell | None = None
    for unit, outcome in made:
        if unit.key == tried:
            continue
        if outcome.reason and not proven:
            other = _another(unit, units)
            found = None if other is None else attempt(other, True)
            if other is None or found is None or found.reason:
                raise EvalkitError(f"{unit.place}: {outcome.reason}")
            yield other, found
            tried = other.key
        proven = True
        yield unit, outcome


def _another(unit: Unit, units: Sequence[Unit]) -> Unit | None:
    """Return the last unit of another checkpoint, or else of another batch, if there is one."""
    others = [one for one in units if one.cell.checkpoint != unit.cell.checkpoint]
    others = others or [one for one in units if one.cell.batch != unit.cell.batch]
    return others[-1] if others else None


def parts_of(unit: Unit, outcome: Outcome) -> tuple[Unit | None, Unit | None]:
    """Return what of a unit has rows, and what has none; None for nothing.

    Args:
        unit: that was executed.
        outcome: what became of it.
    """
    if isinstance(outcome, Failure):
        return None, unit
    missing = unit.pairs & outcome.failed.keys()
    if not missing:
        return unit, None
    scored = replace(unit, pairs=unit.pairs - missing)
    return scored, replace(unit, pairs=frozenset(missing), is_new=False)
