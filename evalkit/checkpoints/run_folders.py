"""The checkpoints of a folder without a manifest: which they are, and how far training was.

Besides plain files these are the folders that a training library leaves: ``checkpoint-500/`` of the
Hugging Face Trainer, any folders with a step in their name, or one folder that is itself a saved
model or adapter.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.checkpoints.saved import holds_saved, named_adapters
from evalkit.checkpoints.tensors import SUFFIXES
from evalkit.errors import EvalkitError, shortened
from evalkit.json_files import read_object

TRAINER_STATE = "trainer_state.json"

_TRAINER_FOLDER = re.compile(r"checkpoint-\d+")
# What lies beside a saved model: a model's own files, and what training goes on from.
_BESIDE = re.compile(
    r"(model|pytorch_model|adapter_model)(-\d+-of-\d+)?\.(safetensors|bin)"
    r"|training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth"
)
_NAMED_STEP = re.compile(r"step[^0-9a-z.]?(\d+)", re.IGNORECASE)
_NAMED_CHECKPOINT = re.compile(r"checkpoint[^0-9a-z.]?(\d+)", re.IGNORECASE)
# The parts of a decimal number, such as a loss in the name, are no steps.
_INTEGER = re.compile(r"(?<![\d.])\d+(?!\d|\.\d)")
_WHOLE_EPOCH = 1e-3


@dataclass(frozen=True)
class Found:
    """A checkpoint as its place on disk tells.

    The fields are those of :class:`evalkit.checkpoints.Checkpoint`.
    """

    name: str
    path: Path
    step: int
    progress: float
    epoch: int | None = None


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


def find_checkpoints(folder: Path) -> tuple[Found, ...]:
    """Return the checkpoints in ``folder`` by rising step, none where there are none.

    Hidden files and folders do not count. Where folders ``checkpoint-N`` lie, files beside them do
    not count either: those belong to the end of the same run.

    Raises:
        EvalkitError: files and folders are mixed, their order cannot be told, two share a step or a
            name, or a ``trainer_state.json`` is damaged.
    """
    try:
        return _find(folder)
    except OSError as error:
        raise EvalkitError(
            f"expected a folder that can be read at '{folder}', found {error.strerror or error}; "
            "check its permissions"
        ) from error


def _find(folder: Path) -> tuple[Found, ...]:
    files, folders = _children(folder)
    saved = [path for path in folders if _TRAINER_FOLDER.fullmatch(path.name)]
    if not saved:
        saved = [path for path in folders if holds_saved(path) or named_adapters(path)]
        numbered = [path for path in saved if _step_in(path.name) is not None]
        loose = [path for path in files if not _BESIDE.fullmatch(path.name)]
        if holds_saved(folder) and not loose and not numbered:
            return (_single(folder),)
        if not loose and not numbered and (lone := _lone_adapter(folder)) is not None:
            return (_single(lone),)
        if loose and numbered:
            raise EvalkitError(
                f"expected checkpoints in '{folder}' that are all files or all folders, found "
                f"'{loose[0].name}' and '{numbered[0].name}'; move one of the kinds elsewhere"
            )
        # Folders without a step are asides, such as 'best', when files are the checkpoints.
        saved = [] if loose else saved
    if saved:
        return _ordered(folder, saved, [_trainer_state(path) for path in saved])
    return _ordered(folder, files, [None] * len(files))


def _lone_adapter(folder: Path) -> Path | None:
    """Return the checkpoint that a folder with adapters of names of their own is, None for several.

    The Trainer's state lies beside the folders of the adapters.
    """
    named = named_adapters(folder)
    if named and (folder / TRAINER_STATE).is_file():
        return folder
    return named[0] if len(named) == 1 else None


def _children(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files with a known ending and the folders that are not hidden, by name."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in paths if path.suffix in SUFFIXES and path.is_file()]
    return files, [path for path in paths if path.is_dir()]


def _single(folder: Path) -> Found:
    """Return a folder that is one checkpoint: the end of training, unless its state differs."""
    name = folder.resolve().name or "checkpoint"
    state = _trainer_state(folder)
    if state is None:
        return Found(name, folder, _checked(_named_step(name) or 0, folder), 1.0)
    progress = state.step / state.total if state.total else 1.0
    return Found(name, folder, state.step, progress, state.epoch)


def _ordered(
    folder: Path, paths: list[Path], states: list[TrainerState | None]
) -> tuple[Found, ...]:
    """Return checkpoints by rising step, with the progress that the last one's state tells."""
    steps = _steps(paths, states)
    names = [path.name if path.is_dir() else path.stem for path in paths]
    ordered = sorted(zip(steps, names, paths, states, strict=True), key=lambda item: item[:3])
    seen: dict[int | str, Path] = {}
    for step, name, path, _ in ordered:
        other = seen.get(step) or seen.get(name)
        if other is not None:
            raise EvalkitError(
                f"expected one checkpoint for each step and name in '{folder}', found "
                f"'{other.name}' and '{path.name}'; remove or rename one"
            )
        seen[step] = seen[name] = path
    if not ordered:
        return ()
    last, _, _, state = ordered[-1]
    total = state.total if state is not None and state.total is not None else last
    return tuple(
        Found(name, path, step, step / total if total else 0.0, state.epoch if state else None)
        for step, name, path, state in ordered
    )


def _steps(paths: list[Path], states: list[TrainerState | None]) -> list[int]:
    """Return the step of every checkpoint.

    It is what the Trainer wrote, otherwise the number in the name, and where no name has one the
    position.
    """
    numbers = [
        _step_in(path.name if path.is_dir() else path.stem) if state is None else state.step
        for path, state in zip(paths, states, strict=True)
    ]
    if all(number is None for number in numbers):
        return list(range(len(paths)))
    for path, number in zip(paths, numbers, strict=True):
        if number is None:
            raise EvalkitError(
                f"expected a step number in the name of every checkpoint or of none, found "
                f"'{path}' without one; rename it, as in 'step-100{_ending(path)}'"
            )
        _checked(number, path)
    return [number for number in numbers if number is not None]


def _ending(path: Path) -> str:
    return "" if path.is_dir() else path.suffix


def _step_in(name: str) -> int | None:
    named = _named_step(name)
    integers = _INTEGER.findall(name)
    return int(integers[-1]) if named is None and integers else named


def _named_step(name: str) -> int | None:
    found = _NAMED_STEP.findall(name) or _NAMED_CHECKPOINT.findall(name)
    return int(found[-1]) if found else None


def _checked(step: int, path: Path) -> int:
    if step >= 2**63:
        raise EvalkitError(
            f"expected a step number below 2^63 in the name of a checkpoint, found '{path}'; "
            "rename it"
        )
    return step


def _trainer_state(folder: Path) -> TrainerState | None:
    """Return what the Trainer wrote about a checkpoint, None where it wrote nothing."""
    path = folder / TRAINER_STATE
    if not path.is_file():
        return None
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
