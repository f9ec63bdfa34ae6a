"""Training: a task becomes a trajectory of checkpoints, the initialised model included."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalkit import likelihoods
from evalkit.checkpoints import Trajectory, open_trajectory
from evalkit.checkpoints.adapter_weights import is_adapted, save_adapter
from evalkit.checkpoints.manifest import FORMAT, MANIFEST_NAME, Entry, write_manifest
from evalkit.checkpoints.saved import find_saved, saved_hash
from evalkit.checkpoints.tensors import write_tensor_file
from evalkit.errors import EvalkitError
from evalkit.evaluation.forward import forward
from evalkit.likelihoods import IGNORED_LABEL
from evalkit.settings import check_seed
from evalkit.tasks import Recipe, Samples, Task
from evalkit.tasks.samples import ItemSamples
from evalkit.tasks.task import seeded, user_code
from evalkit.training import optimizers
from evalkit.version import __version__

_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Epoch:
    """What training reports after every epoch.

    Args:
        number: the epoch that ended, from 1.
        of: epochs in all.
        step: optimiser steps taken so far.
        loss: mean loss per sample over the epoch, each batch before its step.
    """

    number: int
    of: int
    step: int
    loss: float


def train(
    task: Task,
    *,
    folder: str | Path,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    checkpoint_every: int | None = None,
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Trajectory:
    """Train a task on the mean loss of each batch and save a trajectory of checkpoints.

    The same arguments with the same number of threads on the same machine give the same files. The
    folder appears when training is complete, and not at all when it fails.

    Args:
        task: what to train.
        folder: where the checkpoints and their manifest go; absent or empty.
        optimizer, learning_rate, weight_decay, epochs, batch_size, checkpoint_every: as in
            :class:`evalkit.tasks.Recipe`; None takes the task's own.
        seed: the seed of the initial values, the order of the samples, and dropout.
        on_epoch: called after every epoch.

    Returns:
        The trajectory as read back from the folder.

    Raises:
        EvalkitError: an argument is out of range, the folder is not empty, the task's code fails,
            or the loss is not finite.
    """
    chosen = {
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "epochs": epochs,
        "batch_size": batch_size,
        "checkpoint_every": checkpoint_every,
    }
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    recipe = dataclasses.replace(task.recipe, **given)
    seed = check_seed(seed)
    folder = Path(folder)
    _check_folder(folder)
    samples = task.training_samples()
    if recipe.batch_size > len(samples):
        raise EvalkitError(
            f"expected a batch size of at most {len(samples)}, the number of training samples of "
            f"task '{task.name}', found {recipe.batch_size}; choose a smaller batch size"
        )
    model = task.build_model(seed)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise EvalkitError(
            f"expected trainable parameters in the model of task '{task.name}', found none; set "
            "requires_grad on those to train"
        )
    samples, validation = task.fit_labels(samples, model), task.validation_samples()
    validation = None if validation is None else task.fit_labels(validation, model)
    with _built_aside(folder) as temporary, seeded(seed):
        training = _Training(task, model, samples, validation, recipe, temporary)
        entries = list(training.checkpoints(torch.Generator().manual_seed(seed), on_epoch))
        write_manifest(temporary / MANIFEST_NAME, _manifest(task, model, recipe, seed, entries))
    return open_trajectory(folder)


@dataclass(frozen=True)
class _Training:
    """The fixed parts of one training run."""

    task: Task
    model: nn.Module
    samples: Samples | ItemSamples
    validation: Samples | ItemSamples | None
    recipe: Recipe
    folder: Path

    def checkpoints(
        self, generator: torch.Generator, on_epoch: Callable[[Epoch], None] | None
    ) -> Iterator[Entry]:
        """Train, saving a checkpoint at the start, at intervals and at the end."""
        recipe = self.recipe
        optimizer = optimizers.get(recipe.optimizer)(
            (parameter for parameter in self.model.parameters() if parameter.requires_grad),
            recipe.learning_rate,
            recipe.weight_decay,
        )
        yield self._save(epoch=0)
        for epoch in range(1, recipe.epochs + 1):
            loss = self._train_epoch(optimizer, generator, epoch)
            if epoch % recipe.checkpoint_every == 0 or epoch == recipe.epochs:
                yield self._save(epoch)
            if on_epoch is not None:
                on_epoch(Epoch(epoch, recipe.epochs, self._step(epoch), loss))

    def _step(self, epoch: int) -> int:
        return epoch * math.ceil(len(self.samples) / self.recipe.batch_size)

    def _train_epoch(
        self, optimizer: torch.optim.Optimizer, generator: torch.Generator, epoch: int
    ) -> float:
        """Take a step per batch, in a new random order; return the mean loss per sample."""
        self.model.train()
        total = 0.0
        order = torch.randperm(len(self.samples), generator=generator)
        for indices in order.split(self.recipe.batch_size):
            optimizer.zero_grad()
            losses, _, _ = self._losses(self.samples, indices)
            losses.mean().backward()
            total += self._finite(float(losses.detach().sum()), epoch)
            optimizer.step()
        return total / len(order)

    def _losses(
        self, samples: Samples | ItemSamples, indices: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses (n,), logits (n, ..., C) and checked targets of the samples at indices."""
        inputs, targets = samples.take(indices)
        with user_code(f"the model of task '{self.task.name}' on its data"):
            logits = forward(self.model, inputs)
        likelihood = likelihoods.get(self.task.likelihood)
        targets = likelihood.check(logits, targets)
        return likelihood.losses(logits, targets), logits, targets

    def _finite(self, loss: float, epoch: int) -> float:
        if not math.isfinite(loss):
            raise EvalkitError(
                f"expected a finite loss while training task '{self.task.name}', found {loss} in "
                f"epoch {epoch}; lower the learning rate ({self.recipe.learning_rate:g})"
            )
        return loss

    def _save(self, epoch: int) -> Entry:
        """Write a checkpoint and return what the manifest says about it."""
        loss, _ = self._evaluate(self.samples)
        self._finite(loss, epoch)
        accuracy = None if self.validation is None else self._evaluate(self.validation)[1]
        step = self._step(epoch)
        path = self._write(f"step-{step:06d}")
        return Entry(
            file=path.name,
            step=step,
            epoch=epoch,
            progress=epoch / self.recipe.epochs,
            sha256=saved_hash(find_saved(path)),
            training_loss=loss,
            validation_accuracy=accuracy,
        )

    def _write(self, name: str) -> Path:
        """Write the model, of one with an adapter the adapter alone, in the form of its library."""
        if is_adapted(self.model):
            path = self.folder / name
            save_adapter(self.model, path)
        else:
            path = self.folder / f"{name}.safetensors"
            write_tensor_file(path, self.model.state_dict())
        return path

    @torch.no_grad()
    def _evaluate(self, samples: Samples | ItemSamples) -> tuple[float, float | None]:
        """Return the mean loss per sample and the accuracy, the model in eval mode.

        The accuracy is the share of labels predicted right, None for a likelihood without classes.
        """
        self.model.eval()
        total, right, labels = 0.0, 0, 0
        for indices in torch.arange(len(samples)).split(_EVALUATION_BATCH):
            losses, logits, targets = self._losses(samples, indices)
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


def _manifest(
    task: Task, model: nn.Module, recipe: Recipe, seed: int, entries: list[Entry]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "task": task.name or None,
        "settings": dict(task.settings),
        "likelihood": task.likelihood,
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "threads": torch.get_num_threads(),  # sums in another order differ in the last digit
        "versions": {
            "evalkit": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "checkpoints": [dataclasses.asdict(entry) for entry in entries],
    }


def _check_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = "a folder that is not empty" if folder.is_dir() else "a file"
        raise EvalkitError(
            f"expected a new or empty folder at '{folder}', found {found}; choose another `folder`"
        )


@contextmanager
def _built_aside(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``folder`` at the end, or vanishes on an error."""
    folder = folder.absolute()
    existing = next(parent for parent in folder.parents if parent.exists())
    temporary = existing / f".{folder.name}.partial-{os.getpid()}"
    try:
        with _writable(folder):
            temporary.mkdir()
        yield temporary
        with _writable(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():
                folder.rmdir()  # empty: not every system replaces a folder by renaming
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EvalkitError(
            f"expected a folder that can be made at '{folder}', found {error.strerror or error}; "
            "choose another `folder`"
        ) from error
