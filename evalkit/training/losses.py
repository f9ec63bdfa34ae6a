"""The losses of a task's samples under its model, and their means over many samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evalkit import likelihoods
from evalkit.errors import EvalkitError
from evalkit.evaluation.devices import on_device
from evalkit.evaluation.forward import forward
from evalkit.likelihoods import IGNORED_LABEL
from evalkit.tasks import Samples, Task
from evalkit.tasks.samples import ItemSamples
from evalkit.tasks.task import user_code

_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Evaluation:
    """How well a model does.

    Attributes:
        training_loss: mean per training sample.
        validation_accuracy: share of labels predicted right, None without validation samples and
            for a likelihood without classes.
    """

    training_loss: float
    validation_accuracy: float | None


@dataclass(frozen=True)
class Losses:
    """The losses of a task.

    Args:
        task: says what outputs mean.
        model: of the task, on the device.
        training: its training samples.
        validation: others, if it has some.
        device: to which batches are brought.
    """

    task: Task
    model: nn.Module
    training: Samples | ItemSamples
    validation: Samples | ItemSamples | None
    device: torch.device

    def outputs(
        self, samples: Samples | ItemSamples, indices: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses (n,), logits (n, ..., C) and checked targets of the samples at indices."""
        inputs, targets = on_device(samples.take(indices), self.device)
        with user_code(f"the model of task '{self.task.name}' on its data"):
            logits = forward(self.model, inputs)
        likelihood = likelihoods.get(self.task.likelihood)
        targets = likelihood.check(logits, targets)
        return likelihood.losses(logits, targets), logits, targets

    def finite(self, loss: float, epoch: int, learning_rate: float) -> float:
        """Return a loss.

        Raises:
            EvalkitError: it is not finite.
        """
        if not math.isfinite(loss):
            found = f"found {loss} in epoch {epoch}; lower the learning rate ({learning_rate:g})"
            if not epoch:  # no step was taken
                found = f"found {loss} before the first step; correct the data or initial values"
            raise EvalkitError(
                f"expected a finite loss while training task '{self.task.name}', {found}"
            )
        return loss

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Return how well the model does in eval mode."""
        loss, _ = self._means(self.training)
        accuracy = None if self.validation is None else self._means(self.validation)[1]
        return Evaluation(loss, accuracy)

    def _means(self, samples: Samples | ItemSamples) -> tuple[float, float | None]:
        """Return the mean loss per sample and the share of labels predicted right."""
        self.model.eval()
        total, right, labels = 0.0, 0, 0
        for indices in torch.arange(len(samples)).split(_EVALUATION_BATCH):
            losses, logits, targets = self.outputs(samples, indices)
            total += float(losses.sum())
            predicted = _predictions(self.task.likelihood, logits)
            if predicted is not None:
                labelled = targets != IGNORED_LABEL
                right += int(((predicted == targets.round()) & labelled).sum())
                labels += int(labelled.sum())
        return total / len(samples), right / labels if labels else None


def _predictions(likelihood: str, logits: Tensor) -> Tensor | None:
    """Return the most likely class per label position, None for a likelihood without classes."""
    if likelihood == "categorical":
        return logits.argmax(-1)
    return (logits > 0).double() if likelihood == "bernoulli" else None
