"""Saved checkpoints of one training run: opened in order, verified, loaded into a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evalkit.errors import EvalkitError
from evalkit.fitting import fit_to_model
from evalkit.manifest import MANIFEST_NAME, Entry, read_manifest
from evalkit.tasks import Task, load_task, task_names
from evalkit.tensors import SUFFIXES, file_hash, read_tensor_file

_NAMED_STEP = re.compile(r"step[^0-9a-z.]?(\d+)", re.IGNORECASE)
# The parts of a decimal number, such as a loss in the name, are no steps.
_INTEGER = re.compile(r"(?<![\d.])\d+(?!\d|\.\d)")


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of the model.

    Args:
        name: the file name without its ending, unique in the trajectory.
        path: the file.
        step: optimiser steps taken; without a manifest, the number in the file name or the
            position in the folder.
        epoch: passes over the training data, None where unknown.
        progress: share of training done, 0 (initialised) to 1 (end).
        sha256: hash of the file as it was when the folder was opened.
        training_loss: mean over the training samples, None where unknown.
        validation_accuracy: share of correct validation labels, None where unknown.
    """

    name: str
    path: Path
    step: int
    epoch: int | None
    progress: float
    sha256: str
    training_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass(frozen=True)
class Trajectory:
    """The checkpoints of one training run, by rising progress.

    Args:
        folder: where they lie.
        checkpoints: at least one.
        task: what the manifest calls the task, None where unknown.
        manifest: the content of ``trajectory.json``, None where there is none.
    """

    folder: Path
    checkpoints: tuple[Checkpoint, ...]
    task: str | None = None
    manifest: dict[str, Any] | None = None


def open_trajectory(folder: str | Path) -> Trajectory:
    """Return the checkpoints in ``folder``, ordered by training progress.

    With a manifest the checkpoints are those that it lists, and their hashes must agree. Without
    one they are all files with a known ending. Their order is that of the step numbers in the file
    names: the number after ``step``, otherwise the last integer; names without any number are taken
    in alphabetical order, equally spaced.

    Raises:
        EvalkitError: no folder, no checkpoints, a manifest that does not describe the files, a file
            whose hash differs, or an order that cannot be told.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "a file" if folder.is_file() else "nothing there"
        raise EvalkitError(
            f"expected a folder of checkpoints at '{folder}', found {found}; check the path, or "
            "make one with `evalkit train`"
        )
    if (folder / MANIFEST_NAME).is_file():
        manifest, entries = read_manifest(folder / MANIFEST_NAME)
        checkpoints = tuple(_listed_checkpoint(folder, entry) for entry in entries)
        return Trajectory(folder, checkpoints, manifest.get("task"), manifest)
    return Trajectory(folder, _scan(folder))


def _listed_checkpoint(folder: Path, entry: Entry) -> Checkpoint:
    path = folder / entry.file
    if not path.is_file():
        raise EvalkitError(
            f"expected the checkpoint '{entry.file}' that '{folder / MANIFEST_NAME}' lists, found "
            "no such file; copy the whole folder again"
        )
    digest = file_hash(path)
    if entry.sha256 is not None and digest != entry.sha256:
        raise _altered(path, f"'{folder / MANIFEST_NAME}'")
    return Checkpoint(
        name=path.stem,
        path=path,
        step=entry.step,
        epoch=entry.epoch,
        progress=entry.progress,
        sha256=digest,
        training_loss=entry.training_loss,
        validation_accuracy=entry.validation_accuracy,
    )


def _altered(path: Path, source: str) -> EvalkitError:
    return EvalkitError(
        f"expected '{path}' to have the SHA-256 recorded in {source}, found another: the file is "
        "truncated or altered; copy it again or train again"
    )


def _scan(folder: Path) -> tuple[Checkpoint, ...]:
    """Return the checkpoints of a folder without a manifest."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    paths = [path for path in paths if not path.name.startswith(".")]
    if not paths:
        inner = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))
        hint = f"did you mean '{inner[0]}'?" if inner else "make some with `evalkit train`"
        raise EvalkitError(
            f"expected checkpoints ({', '.join(SUFFIXES)}) in '{folder}', found none; {hint}"
        )
    steps = _steps(paths)
    ordered = sorted(zip(steps, paths, strict=True))
    seen: dict[int | str, Path] = {}
    for step, path in ordered:
        other = seen.get(step) or seen.get(path.stem)
        if other is not None:
            raise EvalkitError(
                f"expected one checkpoint for each step and name in '{folder}', found "
                f"'{other.name}' and '{path.name}'; remove or rename one"
            )
        seen[step] = seen[path.stem] = path
    last = ordered[-1][0]
    return tuple(
        Checkpoint(
            name=path.stem,
            path=path,
            step=step,
            epoch=None,
            progress=step / last if last > 0 else 0.0,
            sha256=file_hash(path),
        )
        for step, path in ordered
    )


def _steps(paths: list[Path]) -> list[int]:
    """Return the step of every file, by its name or, where no name has one, by its position."""
    numbers = [_step_in(path.stem) for path in paths]
    if all(number is None for number in numbers):
        return list(range(len(paths)))
    for path, number in zip(paths, numbers, strict=True):
        if number is not None and number >= 2**63:
            raise EvalkitError(
                f"expected a step number below 2^63 in the name of a checkpoint, found '{path}'; "
                "rename it"
            )
        if number is None:
            raise EvalkitError(
                f"expected a step number in the name of every checkpoint or of none, found "
                f"'{path}' without one; rename it, as in 'step-100{path.suffix}'"
            )
    return [number for number in numbers if number is not None]


def _step_in(stem: str) -> int | None:
    found = _NAMED_STEP.findall(stem) or _INTEGER.findall(stem)
    return int(found[-1]) if found else None


def trajectory_task(trajectory: Trajectory, override: str | None = None) -> Task:
    """Return the task to score a trajectory with.

    A manifest is data: it may name a registered task, but never code to load.

    Args:
        trajectory: the checkpoints.
        override: what the caller asked for, in the forms of :func:`evalkit.tasks.load_task`; it
            wins over the manifest.

    Raises:
        EvalkitError: there is no override and the manifest names no registered task.
    """
    if override is not None:
        return load_task(override)
    if trajectory.task in task_names():
        return load_task(str(trajectory.task))
    found = "no task" if trajectory.task is None else f"'{trajectory.task}', which is not one"
    raise EvalkitError(
        f"expected the name of a registered task in '{trajectory.folder / MANIFEST_NAME}', found "
        f"{found}; pass --task {trajectory.task or 'file.py:attribute'}"
    )


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint as they are in the file, on the CPU.

    Raises:
        EvalkitError: the file is not what it was when the folder was opened, or cannot be read; see
            :func:`evalkit.tensors.read_tensor_file`.
    """
    if file_hash(checkpoint.path) != checkpoint.sha256:
        raise _altered(checkpoint.path, "its trajectory")
    return read_tensor_file(checkpoint.path)


def verify(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Check that a checkpoint can be loaded into ``model``, which is left as it is.

    Raises:
        EvalkitError: the file was altered or cannot be read, a tensor holds NaN or infinity, or
            names or shapes differ from those of ``model.state_dict()``.
    """
    _fitting_tensors(checkpoint, model)


def verify_trajectory(trajectory: Trajectory, model: nn.Module) -> None:
    """Check every checkpoint as :func:`verify` does, before any is used."""
    for checkpoint in trajectory.checkpoints:
        verify(checkpoint, model)


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the values of a checkpoint into ``model``, cast to the model's own dtypes.

    Raises:
        EvalkitError: as for :func:`verify`; the model is then left as it was.
    """
    model.load_state_dict(_fitting_tensors(checkpoint, model), strict=True)


def _fitting_tensors(checkpoint: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that is safe to load into ``model``."""
    return fit_to_model(read_tensors(checkpoint), model, checkpoint.path)
