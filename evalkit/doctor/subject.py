"""What is examined: the model of a task or of one checkpoint, and a batch, as a study has them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.checkpoints import Trajectory, load_into
from evalkit.checkpoints.adapters import model_for
from evalkit.errors import EvalkitError
from evalkit.evaluation.devices import check_device, on_device
from evalkit.evaluation.failures import forward_failures
from evalkit.evaluation.forward import Evaluation, evaluation, taking
from evalkit.evaluation.given import Inputs, check_batch, given_inputs, given_targets
from evalkit.registry import suggest
from evalkit.settings import Settings
from evalkit.study.batches import samples_to_score, take_batch
from evalkit.tasks import Samples, Task
from evalkit.tasks.samples import ItemSamples
from evalkit.tasks.user_code import user_code

FEW = 8
"""Samples that checks of the forward are made on."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples, as the forward and the likelihood take them.

    Attributes:
        inputs: what the forward takes.
        targets: for the likelihood.
        size: N.
    """

    inputs: Inputs
    targets: Tensor
    size: int


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, a batch of its training samples, and the study that is planned.

    Attributes:
        task: what the task is called.
        checkpoint: the name of the checkpoint that the model holds, None where it is initialised.
        checkpoints: of the study.
        model: in eval mode, on the device of the study.
        likelihood: what its outputs mean.
        settings: of the study.
        samples: the training samples, from which batches are drawn.
        batch: the first of the study.
        few: a few samples of it, drawn by themselves: their padding is their own.
    """

    task: str
    checkpoint: str | None
    checkpoints: int
    model: nn.Module
    likelihood: str
    settings: Settings
    samples: Samples | ItemSamples
    batch: Batch
    few: Batch

    @property
    def training_samples(self) -> int:
        """How many samples there are."""
        return len(self.samples)

    @property
    def dtype(self) -> torch.dtype | None:
        """That of the evaluation, None for the model's own."""
        return None if self.settings.dtype is None else getattr(torch, self.settings.dtype)

    def on_cpu(self) -> Subject:
        """Return the same with model and few samples on the CPU.

        A sample that is run by itself may index what only a batch has: that is an error on a CPU,
        and ends all that a process can do on a GPU.
        """
        if next(self.model.parameters()).device.type == "cpu":
            return self
        inputs = on_device(self.few.inputs, "cpu")
        few = Batch(inputs, self.few.targets.cpu(), self.few.size)
        return replace(self, model=copy.deepcopy(self.model).cpu(), few=few)

    def evaluated(self) -> Evaluation:
        """Return the model as it is evaluated on the few samples.

        Raises:
            EvalkitError: nothing is trainable, samples influence each other by batch statistics,
                or the forward fails.
        """
        inputs = self.few.inputs
        found = taking(evaluation(self.model, self.dtype), inputs)
        with forward_failures(self.model, inputs):
            found.run(inputs)
        return found


def of_task(task: Task, settings: Settings) -> Subject:
    """Return the subject that the initialised model of a task is.

    Args:
        task: the model and the data.
        settings: of the study that is planned.

    Raises:
        EvalkitError: the device, the settings and the task do not fit together, or code of the
            task fails.
    """
    device = check_device(settings.device)
    model = task.build_model(settings.seed).eval().to(device)
    return _subject(model, task, settings, None, 1)


def of_trajectory(
    trajectory: Trajectory, task: Task, settings: Settings, checkpoint: str | None = None
) -> Subject:
    """Return the subject that one checkpoint is.

    Args:
        trajectory: the checkpoints.
        task: the model and the data.
        settings: of the study that is planned.
        checkpoint: the name of one; None for the first.

    Raises:
        EvalkitError: there is no such checkpoint, it does not fit the model, or as :func:`of_task`.
    """
    names = {one.name: one for one in trajectory.checkpoints}
    if checkpoint is not None and checkpoint not in names:
        raise EvalkitError(
            f"expected a checkpoint of '{trajectory.folder}', found '{checkpoint}'; "
            f"{suggest(checkpoint, names)}"
        )
    chosen = trajectory.checkpoints[0] if checkpoint is None else names[checkpoint]
    device = check_device(settings.device)
    model = model_for(trajectory, task, settings.seed).eval().to(device)
    load_into(model, chosen)
    return _subject(model, task, settings, chosen.name, len(names))


def _subject(
    model: nn.Module, task: Task, settings: Settings, checkpoint: str | None, checkpoints: int
) -> Subject:
    samples = task.fit_labels(samples_to_score(task, settings.batch_size), model)
    few = replace(settings, batch_size=min(FEW, settings.batch_size))
    with user_code(f"the data of task '{task.name}'"):
        batches = [_batch(model, *take_batch(samples, one, 0)) for one in (settings, few)]
    return Subject(
        task.name,
        checkpoint,
        checkpoints,
        model,
        task.likelihood,
        settings,
        samples,
        *batches,
    )


def _batch(model: nn.Module, inputs: Any, targets: Any) -> Batch:
    given, wanted = given_inputs(model, inputs), given_targets(targets)
    return Batch(given, wanted, check_batch(given, wanted))
