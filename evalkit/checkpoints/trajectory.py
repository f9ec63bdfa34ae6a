"""Saved checkpoints of one training run: opened in order, verified, loaded into a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evalkit.checkpoints.adapter_weights import fit_to_adapter, load_adapter
from evalkit.checkpoints.fitting import fit_to_model
from evalkit.checkpoints.manifest import MANIFEST_NAME, Entry, read_manifest
from evalkit.checkpoints.run_folders import find_checkpoints
from evalkit.checkpoints.saved import (
    MODEL_CONFIG,
    Saved,
    find_saved,
    read_adapter_config,
    read_saved,
    saved_hash,
)
from evalkit.checkpoints.tensors import SUFFIXES
from evalkit.errors import EvalkitError
from evalkit.identity import task_name
from evalkit.tasks import Task, load_task, setting_names, task_names
from evalkit.tasks.task import Setting


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of the model, or of the adapter on it.

    Args:
        name: the name of the folder, or of the file without its ending; unique in the trajectory.
        path: the file or the folder; see :func:`evalkit.checkpoints.saved.find_saved`.
        step: optimiser steps taken; without a manifest, what ``trainer_state.json`` says, the
            number in the name or the position in the folder.
        epoch: passes over the training data, None where unknown.
        progress: share of training done, 0 (initialised) to 1 (end).
        sha256: hash as it was when the folder was opened; see
            :func:`evalkit.checkpoints.saved.saved_hash`.
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
        is_adapter: whether the checkpoints hold only adapters, put on a model of their own.
        base_model: the model that the adapters say they belong to, or the folder of the first
            checkpoint where whole models say how to build them; None where unknown.
        settings: what the manifest says that the task was made with.
    """

    folder: Path
    checkpoints: tuple[Checkpoint, ...]
    task: str | None = None
    manifest: dict[str, Any] | None = None
    is_adapter: bool = False
    base_model: str | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)


def open_trajectory(folder: str | Path) -> Trajectory:
    """Return the checkpoints in ``folder``, ordered by training progress.

    With a manifest the checkpoints are those that it lists, and their hashes must agree. Without
    one they are files with a known ending, the folders ``checkpoint-N`` of the Hugging Face
    Trainer, any folders that each hold a saved model or adapter, or ``folder`` itself if it is one.
    Their order is that of the steps in ``trainer_state.json``, otherwise of the step numbers in the
    names: the number after ``step`` or ``checkpoint``, otherwise the last integer; names without
    any number are taken in alphabetical order, equally spaced.

    Raises:
        EvalkitError: no folder, no checkpoints, a manifest that does not describe the files, a file
            whose hash differs, adapters mixed with whole models, or an order that cannot be told.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "a file" if folder.is_file() else "nothing there"
        raise EvalkitError(
            f"expected a folder of checkpoints at '{folder}', found {found}; check the path, or "
            "make one with `evalkit train`"
        )
    if not (folder / MANIFEST_NAME).is_file():
        return _trajectory(folder, _scan(folder))
    manifest, entries = read_manifest(folder / MANIFEST_NAME)
    return _trajectory(folder, [_listed_checkpoint(folder, entry) for entry in entries], manifest)


def _trajectory(
    folder: Path,
    found: list[tuple[Checkpoint, Saved]],
    manifest: dict[str, Any] | None = None,
) -> Trajectory:
    """Return a trajectory whose checkpoints are all adapters, or none is."""
    adapters = [checkpoint for checkpoint, saved in found if saved.is_adapter]
    wholes = [checkpoint for checkpoint, saved in found if not saved.is_adapter]
    if adapters and wholes:
        raise EvalkitError(
            f"expected adapters or whole models in '{folder}', found both: '{adapters[0].name}' is "
            f"an adapter, '{wholes[0].name}' a whole model; move one of the kinds elsewhere"
        )
    return Trajectory(
        folder=folder,
        checkpoints=tuple(checkpoint for checkpoint, _ in found),
        task=(manifest or {}).get("task"),
        manifest=manifest,
        is_adapter=bool(adapters),
        base_model=_base_model(found[0][1]),
        settings=(manifest or {}).get("settings", {}),
    )


def _base_model(saved: Saved) -> str | None:
    if saved.is_adapter:
        return read_adapter_config(saved).get("base_model_name_or_path") or None
    return str(saved.path) if (saved.path / MODEL_CONFIG).is_file() else None


def _listed_checkpoint(folder: Path, entry: Entry) -> tuple[Checkpoint, Saved]:
    path = folder / entry.file
    if not path.exists():
        raise EvalkitError(
            f"expected the checkpoint '{entry.file}' that '{folder / MANIFEST_NAME}' lists, found "
            "no such file; copy the whole folder again"
        )
    saved = find_saved(path)
    digest = saved_hash(saved)
    if entry.sha256 is not None and digest != entry.sha256:
        raise _altered(path, f"'{folder / MANIFEST_NAME}'")
    checkpoint = Checkpoint(
        name=path.name if path.is_dir() else path.stem,
        path=path,
        step=entry.step,
        epoch=entry.epoch,
        progress=entry.progress,
        sha256=digest,
        training_loss=entry.training_loss,
        validation_accuracy=entry.validation_accuracy,
    )
    return checkpoint, saved


def _altered(path: Path, source: str) -> EvalkitError:
    return EvalkitError(
        f"expected '{path}' to have the SHA-256 recorded in {source}, found another: it is "
        "truncated or altered; copy it again or train again"
    )


def _scan(folder: Path) -> list[tuple[Checkpoint, Saved]]:
    """Return the checkpoints of a folder without a manifest."""
    checkpoints = []
    for found in find_checkpoints(folder):
        saved = find_saved(found.path)
        checkpoint = Checkpoint(
            name=found.name,
            path=found.path,
            step=found.step,
            epoch=found.epoch,
            progress=found.progress,
            sha256=saved_hash(saved),
        )
        checkpoints.append((checkpoint, saved))
    if not checkpoints:
        inner = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))
        hint = f"did you mean '{inner[0]}'?" if inner else "make some with `evalkit train`"
        raise EvalkitError(
            f"expected checkpoints ({', '.join(SUFFIXES)}, or folders of the Hugging Face Trainer "
            f"or of PEFT) in '{folder}', found none; {hint}"
        )
    return checkpoints


def trajectory_task(
    trajectory: Trajectory,
    override: str | None = None,
    settings: Mapping[str, Setting] | None = None,
) -> Task:
    """Return the task to score a trajectory with.

    A manifest is data: it may name a registered task, but never code to load. A family of tasks is
    made with the trajectory's base model, where it takes a ``model``; the settings of the manifest,
    which count for the task that it names only, go before that, and the caller's before both.

    Args:
        trajectory: the checkpoints.
        override: what the caller asked for, in the forms of :func:`evalkit.tasks.load_task`; it
            wins over the manifest.
        settings: of a family of tasks, what the caller asked for.

    Raises:
        EvalkitError: there is no override and the manifest names no registered task, or the task
            takes no such settings.
    """
    named = trajectory.task if trajectory.task in task_names() else None
    spec = override if override is not None else named
    if spec is None:
        found = "no task" if trajectory.task is None else f"'{trajectory.task}', which is not one"
        raise EvalkitError(
            f"expected the name of a registered task in '{trajectory.folder / MANIFEST_NAME}', "
            f"found {found}; pass --task {trajectory.task or 'file.py:attribute'}"
        )
    merged: dict[str, Setting] = {}
    if trajectory.base_model is not None and "model" in setting_names(spec):
        merged["model"] = trajectory.base_model
    if trajectory.task is not None and task_name(spec) == task_name(trajectory.task):
        merged |= trajectory.settings
    return load_task(spec, {**merged, **(settings or {})})


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint as they are in the file, on the CPU.

    Raises:
        EvalkitError: the file is not what it was when the folder was opened, or cannot be read; see
            :func:`evalkit.checkpoints.saved.read_saved`.
    """
    return _read_unaltered(checkpoint, find_saved(checkpoint.path))


def _read_unaltered(checkpoint: Checkpoint, saved: Saved) -> dict[str, Tensor]:
    if saved_hash(saved) != checkpoint.sha256:
        raise _altered(checkpoint.path, "its trajectory")
    return read_saved(saved)


def verify(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Check that a checkpoint can be loaded into ``model``, which is left as it is.

    Raises:
        EvalkitError: the file was altered or cannot be read, a tensor holds NaN or infinity, or
            names or shapes differ from those of ``model.state_dict()``, or of the adapter on it.
    """
    _fitting_tensors(checkpoint, model)


def verify_trajectory(trajectory: Trajectory, model: nn.Module) -> None:
    """Check every checkpoint as :func:`verify` does, before any is used."""
    for checkpoint in trajectory.checkpoints:
        verify(checkpoint, model)


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the values of a checkpoint into ``model``, cast to the model's own dtypes.

    The values of an adapter go into the adapter on the model; see
    :func:`evalkit.checkpoints.adapters.model_for`. What is trainable stays as it is.

    Raises:
        EvalkitError: as for :func:`verify`; the model is then left as it was.
    """
    tensors, is_adapter = _fitting_tensors(checkpoint, model)
    if is_adapter:
        load_adapter(model, tensors)
    else:
        model.load_state_dict(tensors, strict=True)


def _fitting_tensors(checkpoint: Checkpoint, model: nn.Module) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors of a checkpoint that is safe to load, and whether they are an adapter."""
    saved = find_saved(checkpoint.path)
    tensors = _read_unaltered(checkpoint, saved)
    if saved.is_adapter:
        return fit_to_adapter(tensors, model, saved), True
    return fit_to_model(tensors, model, checkpoint.path), False
