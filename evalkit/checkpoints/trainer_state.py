"""How far training was, as ``trainer_state.json`` of the Hugging Face Trainer tells."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.checkpoints.file_names import special_kind
from evalkit.errors import EvalkitError, shortened
from evalkit.storage.json_files import read_object

TRAINER_STATE = "trainer_state.json"
_WHOLE_EPOCH = 1e-3


@dataclass(frozen=True)
class TrainerState:
    """How far training was, as the Trainer wrote it.

    Args:
        step: optimiser steps taken.
        total: steps of the whole run, None where the Trainer did not know.
        epoch: passes over the training data, None for a part of one.
    """

    step: int
    total: int | None
    epoch: int | None


def read_trainer_state(folder: Path) -> TrainerState | None:
    """Return what the Trainer wrote about a checkpoint, None where it wrote nothing."""
    path = folder / TRAINER_STATE
    if not os.path.lexists(path):
        return None
    kind = special_kind(path)
    if kind is not None:
        raise EvalkitError(
            f"expected a file at '{path}', found {kind}; remove it to go by the folder's name"
        )
    content = read_object(path)
    step: Any = content.get("global_step")
    total: Any = content.get("max_steps")
    epoch: Any = content.get("epoch")
    if not _is_integer(step) or not 0 <= step < 2**63:
        raise _wrong(path, "global_step", "an integer from 0 to 2^63 - 1", step)
    if total is not None and not _is_integer(total):
        raise _wrong(path, "max_steps", "an integer", total)
    if epoch is not None and not _is_time(epoch):
        raise _wrong(path, "epoch", "a finite number of at least 0", epoch)
    # The Trainer writes 0 or -1 as long as it does not know, and training can go on beyond.
    known = total is not None and total >= max(step, 1)
    return TrainerState(step, total if known else None, whole_epoch(epoch))


def whole_epoch(epoch: float | None) -> int | None:
    """Return the number of the epoch that just ended, None within an epoch."""
    whole = epoch is not None and abs(epoch - round(epoch)) < _WHOLE_EPOCH
    return round(epoch) if whole and epoch is not None else None


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_time(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value < 2**53 and math.isfinite(value)


def _wrong(path: Path, field: str, expected: str, found: Any) -> EvalkitError:
    return EvalkitError(
        f"expected {expected} as '{field}' in '{path}', found {shortened(repr(found))}; copy the "
        "file again, or remove it to go by the folder's name"
    )
