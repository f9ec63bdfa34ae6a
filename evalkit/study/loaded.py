"""The checkpoint that the model of a study holds, and the next one read ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import nn

from evalkit.checkpoints import Checkpoint, load_into
from evalkit.checkpoints.saved import find_saved
from evalkit.errors import EvalkitError
from evalkit.machine import free_memory
from evalkit.study.steps import SavedSteps

LIMITS = 0.05
"""The part of the time between two loads from which on a load is worth to be shortened."""

_BLOCK = 1 << 20


class Loaded:
    """The checkpoint that the model of a study holds: loaded once for units in a row.

    Where loading takes a good part of the time, a thread reads the files of the checkpoint that is
    likely to be next while this one is scored, so that they are in the memory of the machine when
    they are loaded: pages that the system gives to others as soon as they are needed.

    Args:
        model: that is scored.
        checkpoints: of the study, in their order.
        steps: their optimizers, where a method needs them.
        upcoming: names the checkpoint that is likely to be loaded after one; None where none is.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoints: Sequence[Checkpoint],
        steps: SavedSteps | None,
        upcoming: Callable[[str], str | None],
    ) -> None:
        self._model = model
        self._by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}
        self._steps, self._upcoming = steps, upcoming
        self._name = ""
        self._step: torch.optim.Optimizer | None = None
        self._since: float | None = None
        self._reading: threading.Thread | None = None

    def hold(self, name: str) -> torch.optim.Optimizer | None:
        """Let the model hold a checkpoint, and return its optimizer where a method needs it.

        Raises:
            EvalkitError: its file is not what it was, or cannot be read.
        """
        if name == self._name:
            return self._step
        self._name = ""  # of no checkpoint, where this fails half-way
        started = time.monotonic()
        load_into(self._model, self._by_name[name])
        self._step = None if self._steps is None else self._steps.at(self._by_name[name])
        self._name, ended = name, time.monotonic()
        if self._since is not None and ended - started > LIMITS * (started - self._since):
            self._read_ahead(self._upcoming(name))
        self._since = ended
        return self._step

    def _read_ahead(self, name: str | None) -> None:
        """Let a thread read the files of a checkpoint, unless one is still at it."""
        busy = self._reading is not None and self._reading.is_alive()
        if name is not None and name in self._by_name and not busy:
            given = (self._by_name[name],)
            self._reading = threading.Thread(target=read_through, args=given, daemon=True)
            self._reading.start()


def read_through(checkpoint: Checkpoint) -> None:
    """Read the files of a checkpoint into the memory of the machine, where it would hold two.

    What cannot be read is left to whoever loads it.
    """
    with suppress(OSError, EvalkitError):
        files = find_saved(checkpoint.path).files
        size, free = sum(path.stat().st_size for path in files), free_memory()
        if free is not None and free < 2 * size:
            return
        block = bytearray(_BLOCK)
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.readinto(block):
                    pass
