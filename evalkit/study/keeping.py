"""What becomes of units, kept in the store, and said where something went wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from evalkit.counts import counted
from evalkit.interruption import uninterrupted
from evalkit.settings import Settings
from evalkit.study.execute import Rows
from evalkit.study.faults import Failure, Outcome, parts_of
from evalkit.study.plan import Unit
from evalkit.study.store import Store

MOST_SAID = 5
"""Failures that are said one by one; all of them are in ``failures.csv``."""


class Keeper:
    """Puts rows and failures of units into a store; neither Ctrl-C nor SIGTERM halves one.

    Args:
        store: where they are put.
        settings: of the study.
        say: takes sentences about what went wrong; None for warnings.
    """

    def __init__(
        self, store: Store, settings: Settings, say: Callable[[str], None] | None = None
    ) -> None:
        self._store, self._say = store, say or _warn
        self._size = settings.micro_batch_size
        self._failed = 0

    def keep(self, unit: Unit, outcome: Outcome) -> None:
        """Keep what becomes of a unit; it is on the disk when this returns.

        Raises:
            EvalkitError: as :meth:`Store.put`.
        """
        scored, missing = parts_of(unit, outcome)
        with uninterrupted():
            if scored is not None and isinstance(outcome, Rows):
                self._store.put(scored, outcome)
            if missing is not None:
                self._store.fail(missing, outcome.reason)
        if missing is not None:
            self._say_failed(missing, outcome.reason)
        if not isinstance(outcome, Failure) and outcome.micro_batch_size is not None:
            self._say_size(outcome.micro_batch_size)

    def _say_failed(self, unit: Unit, reason: str) -> None:
        self._failed += 1
        if self._failed <= MOST_SAID:
            self._say(f"{unit.place}: {reason}")
        if self._failed == MOST_SAID:
            self._say(f"more batches that fail are listed in {self._store.folder / 'failures.csv'}")

    def _say_size(self, size: int) -> None:
        """Note in ``run.json``, and say once, that memory is enough for fewer samples."""
        if self._size is not None and self._size <= size:
            return
        self._size = size
        self._store.note({"micro_batch_size_that_fits": size})
        self._say(
            f"memory ran out: batches are evaluated {counted(size, 'sample')} at a time from now "
            f"on, which changes scores by rounding alone; give `micro_batch_size={size}` to begin "
            "so"
        )


def _warn(sentence: str) -> None:
    warnings.warn(f"evalkit: {sentence}", stacklevel=3)
