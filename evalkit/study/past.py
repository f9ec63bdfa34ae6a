"""Past tasks of a study: opened and described before the first score, then taken in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from evalkit.checkpoints import Trajectory, load_into
from evalkit.checkpoints.adapters import model_for
from evalkit.curvature import Labels, PastTask, past_task
from evalkit.curvature.labels import check_labels
from evalkit.errors import EvalkitError
from evalkit.evaluation.devices import check_device
from evalkit.evaluation.wrapped import evaluated_module, plain_name
from evalkit.settings import PAST_BATCHES, Settings
from evalkit.study.batches import data_hash, samples_to_score, take_batch
from evalkit.study.source_files import sources
from evalkit.tasks import Samples, Task
from evalkit.tasks.samples import ItemSamples
from evalkit.tasks.user_code import user_code
from evalkit.updates.parser import parse
from evalkit.updates.registry import takes_past


@dataclass(frozen=True)
class PastRequest:
    """What is asked for.

    Attributes:
        tasks: a task and its checkpoints each, of which the last stands for the end of the task.
        batches: of each task; each is a column of G.
        labels: where the cotangents of F_old come from.
    """

    tasks: tuple[tuple[Trajectory, Task], ...]
    batches: int = PAST_BATCHES
    labels: Labels = "sampled"

    def check(self, methods: Sequence[str]) -> None:
        """Refuse past tasks that cannot be taken in, or without a method that has them as an input.

        Args:
            methods: names, with settings if wanted.

        Raises:
            EvalkitError: there are none.
        """
        check_labels(self.labels, "past_labels")
        if self.batches < 1:
            raise EvalkitError(
                f"expected past batches of at least 1, found {self.batches}; set `past_batches` "
                "to 1 or more"
            )
        if not any(takes_past(parse(name)[0]) for name in methods):
            raise EvalkitError(
                f"expected a method that has past tasks as an input beside `past`, found none in "
                f"{', '.join(methods)}; add fopng to `methods`, or leave `past` out"
            )


@dataclass(frozen=True, eq=False)
class _Opened:
    """A past task whose checkpoint is loaded.

    Attributes:
        task: the task.
        model: as it was at its end, on the device of the evaluation.
        samples: that its batches are drawn from.
        entry: what ``run.json`` says of it.
    """

    task: Task
    model: nn.Module
    samples: Samples | ItemSamples
    entry: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class OpenedPast:
    """Past tasks that are verified, and whose gradients are not taken yet.

    Attributes:
        tasks: the tasks.
        settings: those of the study.
        batches: of each task.
        labels: where the cotangents of F_old come from.
    """

    tasks: tuple[_Opened, ...]
    settings: Settings
    batches: int
    labels: Labels

    @property
    def entries(self) -> list[Mapping[str, Any]]:
        """What ``run.json`` says of them."""
        return [one.entry for one in self.tasks]

    def taken(self) -> PastTask:
        """Return their gradients and Fisher matrix.

        Raises:
            EvalkitError: a batch cannot be evaluated; the sentence names the task.
        """
        found = []
        for one in self.tasks:
            try:
                with user_code(f"the gradients of past task '{one.task.name}'"):
                    batches = _batches(one.samples, self.settings, self.batches)
                    found.append(
                        past_task(
                            one.model,
                            batches,
                            one.task.likelihood,
                            self.labels,
                            seed=self.settings.seed,
                            micro_batch_size=self.settings.micro_batch_size,
                        )
                    )
            except EvalkitError as error:
                raise EvalkitError(f"past task '{one.task.name}': {error}") from error
        return PastTask.joined(found)


def open_past(request: PastRequest, settings: Settings, model: nn.Module) -> OpenedPast:
    """Return past tasks with their checkpoints loaded, verified against a model.

    Args:
        request: the tasks and their checkpoints.
        settings: seed, batch size and device of the study.
        model: that is scored.

    Raises:
        EvalkitError: a checkpoint or a task cannot be used, or its parameters are not those of the
            model.
    """
    opened = []
    for trajectory, task in request.tasks:
        try:
            opened.append(_open(trajectory, task, settings, request))
        except EvalkitError as error:
            raise EvalkitError(f"past task '{task.name}': {error}") from error
        _check_fits(opened[-1], model)
    return OpenedPast(tuple(opened), settings, request.batches, request.labels)


def _open(trajectory: Trajectory, task: Task, settings: Settings, request: PastRequest) -> _Opened:
    checkpoint = trajectory.checkpoints[-1]
    samples = samples_to_score(task, settings.batch_size)
    model = model_for(trajectory, task, settings.seed).eval().to(check_device(settings.device))
    samples = task.fit_labels(samples, model)
    load_into(model, checkpoint)
    entry = {
        "task": task.name,
        "task_settings": dict(task.settings),
        "likelihood": task.likelihood,
        "checkpoint": checkpoint.name,
        "sha256": checkpoint.sha256,
        "key": checkpoint.key,
        "batches": request.batches,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "labels": request.labels,
        "data_sha256": [
            data_hash(*batch) for batch in _batches(samples, settings, request.batches)
        ],
        "code": sources(task.parts()),
    }
    return _Opened(task, model, samples, entry)


def _batches(samples: Samples | ItemSamples, settings: Settings, count: int) -> Iterator[Any]:
    return (take_batch(samples, settings, batch) for batch in range(count))


def _check_fits(past: _Opened, model: nn.Module) -> None:
    """Refuse a past task whose trainable parameters are not those of the model."""
    theirs, ours = _shapes(past.model), _shapes(model)
    for name, shape in ours.items():
        if theirs.get(name) != shape:
            found = f"shape {theirs[name]}" if name in theirs else "no such parameter"
            raise EvalkitError(
                f"expected the checkpoint '{past.entry['checkpoint']}' of past task "
                f"'{past.task.name}' to have the parameters of the model, '{name}' with shape "
                f"{shape}, found {found}; give a past checkpoint of the same model"
            )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        plain_name(name): tuple(value.shape)
        for name, value in evaluated_module(model).named_parameters()
        if value.requires_grad
    }
