"""What ``run.json`` says of a run that starts now."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evalkit.checkpoints import Checkpoint, Trajectory
from evalkit.checkpoints.adapter_weights import loaded_from, same_place
from evalkit.curvature.others import kinds
from evalkit.errors import EvalkitError
from evalkit.evaluation.forward import cast
from evalkit.linearization import Linearization
from evalkit.machine import versions
from evalkit.settings import Settings
from evalkit.storage.writers import now
from evalkit.study.source_files import sources
from evalkit.tasks import Task
from evalkit.updates.foreseen import by_layers
from evalkit.updates.parser import function_of
from evalkit.version import __version__
from evalkit.work import Rates, machine_rates


def describe_run(
    model: nn.Module,
    task: str,
    likelihood: str,
    settings: Settings,
    folder: str | Path,
    checkpoints: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what ``run.json`` says of a run that starts now.

    Args:
        model: that is scored.
        task: what it is called.
        likelihood: what its outputs mean.
        settings: the settings of the run.
        folder: where the checkpoints lie.
        checkpoints: name, step, progress, sha256 and more of each.

    Raises:
        EvalkitError: the model has no parameters.
    """
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise EvalkitError(
            f"expected a model with parameters in task '{task}', found none; check the task"
        )
    return {
        "evalkit": __version__,
        "versions": versions(),
        "rates": asdict(machine_rates(parameter.device)),
        "task": task,
        "trajectory": str(folder),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "settings": {
            **asdict(settings),
            "likelihood": likelihood,
            "dtype": settings.dtype or str(cast(parameter.detach(), None).dtype)[len("torch.") :],
            "device": str(parameter.device),
            "threads": torch.get_num_threads(),
        },
        "checkpoints": list(checkpoints),
        "started": now(),
        "finished": None,
        "seconds": None,
    }


def describe_study(
    trajectory: Trajectory, task: Task, settings: Settings, model: nn.Module, training_samples: int
) -> dict[str, Any]:
    """Return what ``run.json`` says of a study that starts now.

    Args:
        trajectory: the checkpoints.
        task: the model and the data.
        settings: the settings of the run.
        model: the model of the task.
        training_samples: from which batches are drawn.
    """
    checkpoints = [checkpoint_entry(checkpoint) for checkpoint in trajectory.checkpoints]
    described = describe_run(
        model, task.name, task.likelihood, settings, trajectory.folder, checkpoints
    )
    manifest = trajectory.manifest or {}
    origin = {
        "training_samples": training_samples,
        "task_settings": dict(task.settings),
        "code": code_of(task, settings.methods),
        **_base_models(trajectory, task, model),
        "training": manifest.get("recipe"),
    }
    return {**described, **{key: value for key, value in origin.items() if value}}


def _base_models(trajectory: Trajectory, task: Task, model: nn.Module) -> dict[str, str | None]:
    """Return the base model that was loaded, and the one that adapters name where it is another.

    Of whole models it is the folder that the task's model is built by, if it is built by one.
    """
    named = trajectory.base_model
    if not trajectory.is_adapter:
        return {"base_model": named if task.settings.get("model") == named else None}
    loaded = loaded_from(model)
    other = named if named and not (loaded and same_place(loaded, named)) else None
    return {"base_model": loaded, "adapters_base_model": other}


def without_factors(
    lin: Linearization, settings: Settings, left_out: tuple[str, ...]
) -> dict[str, Any]:
    """Return what ``run.json`` says of parameters without factors, where a method needs them.

    Args:
        lin: of the first batch.
        settings: of the run.
        left_out: the parameters that the linearization leaves out.
    """
    if settings.others == "leave":
        return {"without_factors": list(left_out)}
    return {"without_factors": list(kinds(lin).others)} if by_layers(settings.methods) else {}


def rates_in(provenance: Mapping[str, Any]) -> Rates | None:
    """Return the rates that ``run.json`` tells; None where it tells none that can be."""
    told = provenance.get("rates")
    numbers = []
    for field in fields(Rates):
        value = told.get(field.name) if isinstance(told, Mapping) else None
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            return None
        numbers.append(float(value))
    return Rates(*numbers)


def checkpoint_entry(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what ``run.json`` says of a checkpoint."""
    return {key: value for key, value in asdict(checkpoint).items() if key != "path"}


def code_of(task: Task, methods: Iterable[str]) -> dict[str, str]:
    """Return the user's files that rows of these methods depend on, by hash."""
    parts = (*task.parts(), *map(function_of, methods))
    return sources(parts)
