"""Saved checkpoints of one training run, opened in order, and the task to score them with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evalkit.checkpoints.file_names import (
    SUFFIXES,
    checkpoint_name,
    ending,
    printable,
    special_kind,
)
from evalkit.checkpoints.manifest import MANIFEST_NAME, UNFINISHED_NAME, Entry, read_manifest
from evalkit.checkpoints.order import told
from evalkit.checkpoints.run_folders import find_checkpoints
from evalkit.checkpoints.saved import (
    MODEL_CONFIG,
    Saved,
    find_saved,
    read_adapter_config,
    saved_hash,
)
from evalkit.errors import EvalkitError, shortened
from evalkit.names import task_name
from evalkit.tasks import Task, load_task, setting_names, task_names
from evalkit.tasks.task import Setting

_LONGEST_PATH = 4096
"""Characters, as operating systems have them."""


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
        key: where in its files the state dict lies, None where a rule finds it; see
            :func:`evalkit.checkpoints.layout.state_dict_in`.
        optimizer_sha256: what the manifest says is the hash of the optimizer's state beside it,
            None where it does not say.
    """

    name: str
    path: Path
    step: int
    epoch: int | None
    progress: float
    sha256: str
    training_loss: float | None = None
    validation_accuracy: float | None = None
    key: str | None = None
    optimizer_sha256: str | None = None


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
        notes: sentences for the user: the order, where it comes from, and what was set aside.
    """

    folder: Path
    checkpoints: tuple[Checkpoint, ...]
    task: str | None = None
    manifest: dict[str, Any] | None = None
    is_adapter: bool = False
    base_model: str | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_trajectory(
    folder: str | Path, order: str | Sequence[str] | None = None, key: str | None = None
) -> Trajectory:
    """Return the checkpoints in ``folder``, ordered by training progress.

    With a manifest the checkpoints are those that it lists, and their hashes must agree. Without
    one they are files with a known ending, the folders ``checkpoint-N`` of the Hugging Face
    Trainer, any folders that each hold a saved model or adapter, or ``folder`` itself if it is one.
    Their order is that of the steps in ``trainer_state.json``, otherwise of the numbers in the
    names, by the rules of :mod:`evalkit.checkpoints.order`; where those tell no order, ``order``
    has to.

    Args:
        folder: the folder of the checkpoints, or one checkpoint.
        order: ``"name"``, ``"time"`` or the names in order; None goes by the steps.
        key: where in each file the state dict lies, where a rule does not find it; see
            :func:`evalkit.checkpoints.layout.state_dict_in`.

    Raises:
        EvalkitError: no folder, no checkpoints, a training that is not finished, a manifest that
            does not describe the files, a file whose hash differs, adapters mixed with whole
            models, or an order that cannot be told.
    """
    folder = Path(folder)
    if folder.is_file():
        return _one_file(folder, order, key)
    if not folder.is_dir():
        raise EvalkitError(
            f"expected a folder of checkpoints at '{printable(folder)}', found "
            f"{special_kind(folder) or 'neither a folder nor a file'}; check the path, or make one "
            "with `evalkit train`"
        )
    path = folder / MANIFEST_NAME
    if not os.path.lexists(path):
        if os.path.lexists(folder / UNFINISHED_NAME):
            raise EvalkitError(
                f"expected a finished training in '{printable(folder)}', found one that was "
                "interrupted or is still at work; go on with it by the same `evalkit train`, with "
                "`resume`"
            )
        found, notes = _scan(folder, order)
        return _trajectory(folder, found, key, notes=notes)
    if order is not None:
        raise EvalkitError(
            f"expected no `order` for '{folder}', as '{path}' tells it; leave it out, or "
            "remove the file"
        )
    manifest, entries = _manifest(path)
    listed = [_listed_checkpoint(folder, entry) for entry in entries]
    names = [checkpoint.name for checkpoint, _ in listed]
    notes = (told(names, f"by '{MANIFEST_NAME}'"),) if len(names) > 1 else ()
    return _trajectory(folder, listed, key, manifest, notes)


def _one_file(path: Path, order: str | Sequence[str] | None, key: str | None) -> Trajectory:
    """Return the trajectory of one file, with what a manifest beside it says about it."""
    if order is not None:
        raise EvalkitError(
            f"expected no `order` for the single file '{path}', found one; leave it out"
        )
    if not ending(path.name):
        raise EvalkitError(
            f"expected a file that ends in {', '.join(SUFFIXES)} or a folder of checkpoints, found "
            f"'{printable(path)}'; check the path"
        )
    listing = path.with_name(MANIFEST_NAME)
    if not os.path.lexists(listing):
        listing = path.with_name(UNFINISHED_NAME)
    manifest, entries = _manifest(listing) if os.path.lexists(listing) else (None, ())
    for entry in entries:
        if entry.file == path.name:
            return _trajectory(path.parent, [_listed_checkpoint(path.parent, entry)], key, manifest)
    found, notes = _scan(path, None)
    return _trajectory(path.parent, found, key, notes=notes)


def _manifest(path: Path) -> tuple[dict[str, Any], tuple[Entry, ...]]:
    kind = special_kind(path)
    if kind is not None or not path.is_file():
        raise EvalkitError(
            f"expected a file at '{path}', found {kind or 'a folder'}; remove it to go by "
            "file names"
        )
    return read_manifest(path)


def _trajectory(
    folder: Path,
    found: list[tuple[Checkpoint, Saved]],
    key: str | None = None,
    manifest: dict[str, Any] | None = None,
    notes: tuple[str, ...] = (),
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
        checkpoints=tuple(replace(checkpoint, key=key) for checkpoint, _ in found),
        task=(manifest or {}).get("task"),
        manifest=manifest,
        is_adapter=bool(adapters),
        base_model=_base_model(found[0][1]),
        settings=(manifest or {}).get("settings", {}),
        notes=notes,
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
        raise altered(path, f"'{folder / MANIFEST_NAME}'")
    checkpoint = Checkpoint(
        name=checkpoint_name(path),
        path=path,
        step=entry.step,
        epoch=entry.epoch,
        progress=entry.progress,
        sha256=digest,
        training_loss=entry.training_loss,
        validation_accuracy=entry.validation_accuracy,
        optimizer_sha256=entry.optimizer_sha256,
    )
    return checkpoint, saved


def altered(path: Path, source: str) -> EvalkitError:
    """Return the error of a checkpoint that is not what ``source`` says."""
    return EvalkitError(
        f"expected '{path}' to have the SHA-256 recorded in {source}, found another: it is "
        "truncated or altered; copy it again or train again"
    )


def _scan(
    folder: Path, order: str | Sequence[str] | None
) -> tuple[list[tuple[Checkpoint, Saved]], tuple[str, ...]]:
    """Return the checkpoints of a folder without a manifest, and what was decided about them."""
    checkpoints = []
    findings = find_checkpoints(folder, order)
    for found in findings.checkpoints:
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
    return checkpoints, findings.notes


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
        settings: the settings of a family of tasks, what the caller asked for.

    Raises:
        EvalkitError: there is no override and the manifest names no registered task, or the task
            takes no such settings.
    """
    named = trajectory.task if trajectory.task in task_names() else None
    spec = override if override is not None else named
    if spec is None:
        said = shortened(trajectory.task or "")
        found = "no task" if trajectory.task is None else f"'{said}', which is not one"
        # To be copied, so it is whole where it can be a path.
        given = shortened(trajectory.task or "file.py:attribute", _LONGEST_PATH)
        raise EvalkitError(
            f"expected the name of a registered task in '{trajectory.folder / MANIFEST_NAME}', "
            f"found {found}; pass `task={given}`"
        )
    merged: dict[str, Setting] = {}
    if trajectory.base_model is not None and "model" in setting_names(spec):
        merged["model"] = trajectory.base_model
    if trajectory.task is not None and task_name(spec) == task_name(trajectory.task):
        merged |= trajectory.settings
    return load_task(spec, {**merged, **(settings or {})})
