"""Units executed one after another, with what a study has opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from evalkit.curvature import PastTask
from evalkit.linearization import Linearization
from evalkit.study.batches import take_batch
from evalkit.study.execute import Rows, execute
from evalkit.study.loaded import Loaded
from evalkit.study.opened import Opened
from evalkit.study.plan import Unit
from evalkit.study.shown import Shown
from evalkit.study.store import Store


class Execution:
    """Makes the rows of units, one after another, with what a study has opened.

    Args:
        opened: the study.
        store: is told which unit is scored.
        loaded: puts checkpoints into the model.
        taken: past tasks, for methods that have them as an input.
        shown: is told of the iterations of solvers.
        begin: called with the linearization of the first unit that has a gradient, once it is
            known; in this process, not in one that is forked from it.
    """

    def __init__(
        self,
        opened: Opened,
        store: Store,
        loaded: Loaded,
        taken: PastTask | None,
        shown: Shown,
        begin: Callable[[Linearization, tuple[str, ...]], None],
    ) -> None:
        self._opened, self._store, self._loaded = opened, store, loaded
        self._taken, self._shown = taken, shown
        self._begin, self._begun, self._process = begin, False, os.getpid()
        # Fewer samples at a time, once memory has run out.
        self._settings = opened.settings

    def __call__(self, unit: Unit, shown: bool) -> Rows:
        opened, name = self._opened, unit.cell.checkpoint
        if shown:
            self._store.beginning(unit)
        stepping = self._loaded.hold(name)
        rows = execute(
            opened.model,
            take_batch(opened.samples, opened.settings, unit.cell.batch),
            opened.task.likelihood,
            self._settings,
            unit,
            opened.task.name,
            partial(self._shown.at, name) if shown else None,
            None if self._begun or os.getpid() != self._process else self._starting,
            self._taken,
            stepping,
            opened.split,
        )
        if rows.micro_batch_size is not None:
            self._settings = replace(self._settings, micro_batch_size=rows.micro_batch_size)
        return rows

    def _starting(self, lin: Linearization, left_out: tuple[str, ...]) -> None:
        if not self._begun:  # else the batch is evaluated again, in parts
            self._begin(lin, left_out)  # what it refuses, it refuses of the next unit too
            self._begun = True
