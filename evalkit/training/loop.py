"""Training: a task becomes a trajectory of checkpoints, the initialised model included."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evalkit.checkpoints import Trajectory, open_trajectory
from evalkit.checkpoints.manifest import FORMAT, Entry
from evalkit.checkpoints.saved import find_saved, saved_hash
from evalkit.errors import EvalkitError
from evalkit.settings import check_seed
from evalkit.storage.rows import TrainingStep
from evalkit.tasks import Recipe, Task
from evalkit.tasks.user_code import all_seeded
from evalkit.training import folders, optimizers, resuming, saving, schedules
from evalkit.training.history import History, opened_history
from evalkit.training.losses import Losses
from evalkit.training.random_state import random_state
from evalkit.version import __version__


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
    schedule: str | None = None,
    damping: float | None = None,
    momentum: float | None = None,
    normalise: bool | None = None,
    seed: int = 0,
    resume: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_step: Callable[[TrainingStep], None] | None = None,
) -> Trajectory:
    """Train a task on the mean loss of each batch and save a trajectory of checkpoints.

    The same arguments with the same number of threads on the same machine give the same files. On
    an error or an interruption before the first checkpoint, that of the initialised model, nothing
    is left; after it the folder is that of an unfinished training, which ``resume`` goes on with
    from the last checkpoint: on a CPU the files are then those of a training that was not
    interrupted, to the last bit of the weights.

    Args:
        task: what to train.
        folder: where the checkpoints, their manifest and ``history.csv`` go; absent or empty.
        optimizer, learning_rate, weight_decay, epochs, batch_size, checkpoint_every, schedule,
            damping, momentum, normalise: as in :class:`evalkit.tasks.Recipe`; None takes the
            task's own. Where another optimizer than the task's is chosen, ``damping``, ``momentum``
            and ``normalise`` are its own defaults.
        seed: the seed of the initial values, the order of the samples, and dropout.
        resume: whether to go on with an unfinished training in the folder, by the same arguments; a
            finished one is left as it is, and in an absent or empty folder training begins.
        on_epoch: called after every epoch.
        on_step: called after every step.

    Returns:
        The trajectory as read back from the folder.

    Raises:
        EvalkitError: an argument is out of range, the folder is not empty, it holds a training with
            other settings, the task's code fails, or the loss is not finite.
    """
    chosen = {
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "epochs": epochs,
        "batch_size": batch_size,
        "checkpoint_every": checkpoint_every,
        "schedule": schedule,
        "damping": damping,
        "momentum": momentum,
        "normalise": normalise,
    }
    recipe = _recipe(task.recipe, {key: v for key, v in chosen.items() if v is not None})
    seed = check_seed(seed)
    folder = Path(folder)
    folders.check_folder(folder, resume)
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
    manifest = _manifest(task, model, recipe, seed)
    earlier = folders.training_in(folder)
    if earlier is not None:
        resuming.check_same(folder, earlier[0], manifest)
    if not folders.is_finished(folder):
        losses = Losses(task, model, samples, validation)
        training = _Training(losses, recipe, seed, folder, manifest)
        entries = () if earlier is None else earlier[1]
        with folders.made(folder) if earlier is None else nullcontext(), all_seeded(seed):
            training.run(entries, on_epoch, on_step)
    return open_trajectory(folder)


def _recipe(own: Recipe, given: dict[str, Any]) -> Recipe:
    """Return the recipe of a task with what is given in its place.

    Settings that only some optimizers have are those of the task's optimizer, and of no other.
    """
    if given.get("optimizer", own.optimizer) != own.optimizer:
        given = {**dict.fromkeys(optimizers.OPTIONS), **given}
    return dataclasses.replace(own, **given)


@dataclass
class _Training:
    """A training and how far it is.

    Args:
        losses: of the task under the model.
        recipe: how it is trained.
        seed: of the order of the samples, and of optimizers that draw.
        folder: where its files go.
        manifest: what it says of itself, without checkpoints.
    """

    losses: Losses
    recipe: Recipe
    seed: int
    folder: Path
    manifest: dict[str, Any]
    entries: list[Entry] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        recipe, model = self.recipe, self.losses.model
        self.order = torch.Generator().manual_seed(self.seed)
        given = {
            **dataclasses.asdict(recipe),
            "likelihood": self.losses.task.likelihood,
            "seed": self.seed,
        }
        self.settings = optimizers.settings_of(recipe.optimizer, given)
        self.optimizer = optimizers.build(recipe.optimizer, model, self.settings)
        factor = schedules.find(recipe.schedule)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: factor(step / self.steps)
        )
        self.buffers = saving.unsaved_buffers(model)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.losses.training) / self.recipe.batch_size)

    @property
    def steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    def run(
        self,
        entries: tuple[Entry, ...],
        on_epoch: Callable[[Epoch], None] | None,
        on_step: Callable[[TrainingStep], None] | None,
    ) -> None:
        """Train from the last checkpoint on, saving one at the start, at intervals and at the end.

        Args:
            entries: the checkpoints that are there already.
            on_epoch, on_step: see :func:`train`.
        """
        recipe = self.recipe
        last = entries[-1] if entries else None
        if last is None:
            folders.write_unfinished(self.folder, self.manifest)  # before anything that it is about
        with opened_history(self.folder, 0 if last is None else last.step) as history:
            folders.remove_parts(self.folder)
            if last is None:
                self._save(0, history)
            else:
                self.entries = list(entries)
                self._go_on(last)
            for epoch in range((self.entries[-1].epoch or 0) + 1, recipe.epochs + 1):
                loss = self._train_epoch(epoch, history, on_step)
                if epoch % recipe.checkpoint_every == 0 or epoch == recipe.epochs:
                    self._save(epoch, history)
                if on_epoch is not None:
                    on_epoch(Epoch(epoch, recipe.epochs, epoch * self.steps_per_epoch, loss))
        folders.finish(self.folder)

    def _train_epoch(
        self, epoch: int, history: History, on_step: Callable[[TrainingStep], None] | None
    ) -> float:
        """Take a step per batch, in a new random order; return the mean loss per sample."""
        self.losses.model.train()
        total = 0.0
        samples = self.losses.training
        order = torch.randperm(len(samples), generator=self.order)
        batches = order.split(self.recipe.batch_size)
        for step, indices in enumerate(batches, start=(epoch - 1) * self.steps_per_epoch + 1):
            rate = float(self.optimizer.param_groups[0]["lr"])
            self.optimizer.zero_grad()
            losses, _, _ = self.losses.outputs(samples, indices)
            mean = losses.mean()
            mean.backward()
            loss = self.losses.finite(float(mean.detach()), epoch, rate)
            self.optimizer.step()
            self.scheduler.step()
            total += loss * len(indices)
            row = TrainingStep(step, epoch, step / self.steps, loss, rate, 0)
            history.add(row)
            if on_step is not None:
                on_step(row)
        return total / len(order)

    def _save(self, epoch: int, history: History) -> None:
        """Write a checkpoint, its state and the history so far; then the training says so."""
        model, step = self.losses.model, epoch * self.steps_per_epoch
        state = {
            "optimizer": self.recipe.optimizer,
            "settings": self.settings,
            "names": saving.parameter_names(model, self.optimizer),
            "state_dict": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "step": step,
            "order": self.order.get_state(),
            "random": random_state(),
            "buffers": saving.changed_buffers(self.buffers, saving.unsaved_buffers(model)),
        }
        found = self.losses.evaluate()
        self.losses.finite(found.training_loss, epoch, self.recipe.learning_rate)
        name = f"step-{step:06d}"
        path = saving.write_model(model, self.folder, name)
        entry = Entry(
            file=path.name,
            step=step,
            epoch=epoch,
            progress=epoch / self.recipe.epochs,
            sha256=saved_hash(find_saved(path)),
            training_loss=found.training_loss,
            validation_accuracy=found.validation_accuracy,
            optimizer=saving.write_state(self.folder, name, state).name,
        )
        history.keep()
        self.entries.append(entry)
        listed = [dataclasses.asdict(entry) for entry in self.entries]
        folders.write_unfinished(self.folder, {**self.manifest, "checkpoints": listed})

    def _go_on(self, last: Entry) -> None:
        """Go back to the last checkpoint, and let it be evaluated as it was."""
        path = self.folder / last.file
        state = saving.read_state(self.folder / (last.optimizer or ""))
        resuming.restore(
            state, path, last, self.losses.model, self.optimizer, self.scheduler, self.order
        )
        resuming.check_evaluation(path, last, self.losses.evaluate())


def _manifest(task: Task, model: nn.Module, recipe: Recipe, seed: int) -> dict[str, Any]:
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
        "checkpoints": [],
    }
