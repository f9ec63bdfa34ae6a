"""A training at work: its steps, its checkpoints, and how it goes on after an interruption."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evalkit.checkpoints.manifest import Entry
from evalkit.checkpoints.optimizer_files import check_state_hash
from evalkit.checkpoints.saved import find_saved, saved_hash
from evalkit.checkpoints.tensors import file_hash
from evalkit.counts import counted
from evalkit.errors import EvalkitError
from evalkit.storage.rows import TrainingStep
from evalkit.tasks import Recipe
from evalkit.training import folders, optimizers, resuming, saving, schedules, states
from evalkit.training.history import History, opened_history
from evalkit.training.losses import Losses
from evalkit.training.random_state import random_state


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


@dataclass
class Training:
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
        total, counted = 0.0, 0
        order = torch.randperm(len(self.losses.training), generator=self.order)
        batches = order.split(self.recipe.batch_size)
        for step, indices in enumerate(batches, start=(epoch - 1) * self.steps_per_epoch + 1):
            rate = float(self.optimizer.param_groups[0]["lr"])
            loss, skipped = self._step(indices)
            if not skipped:
                self.losses.finite(loss, epoch, rate)
            self.scheduler.step()
            if math.isfinite(loss):
                total, counted = total + loss * len(indices), counted + len(indices)
            row = TrainingStep(step, epoch, step / self.steps, loss, rate, skipped)
            history.add(row)
            if on_step is not None:
                on_step(row)
        return total / counted if counted else math.nan

    def _step(self, indices: Tensor) -> tuple[float, int]:
        """Take a step; return the mean loss before it, and 1 where the optimizer left it out."""
        samples, optimizer = self.losses.training, self.optimizer
        if not optimizers.steps_on_outputs(self.recipe.optimizer):
            optimizer.zero_grad()
            losses, _, _ = self.losses.outputs(samples, indices)
            mean = losses.mean()
            if mean.isfinite():
                mean.backward()
                optimizer.step()
            return float(mean.detach()), 0
        made: Any = optimizer
        before = made.skipped
        loss = made.step(lambda: self.losses.outputs(samples, indices)[1:])
        return float(loss), made.skipped - before

    def _save(self, epoch: int, history: History) -> None:
        """Write a checkpoint, its state and the history so far; then the training says so."""
        model, step = self.losses.model, epoch * self.steps_per_epoch
        state = {
            "optimizer": self.recipe.optimizer,
            "settings": self.settings,
            "names": states.parameter_names(model, self.optimizer),
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
        written = states.write_state(self.folder, name, state)
        entry = Entry(
            file=path.name,
            step=step,
            epoch=epoch,
            progress=epoch / self.recipe.epochs,
            sha256=saved_hash(find_saved(path)),
            training_loss=found.training_loss,
            validation_accuracy=found.validation_accuracy,
            optimizer=written.name,
            optimizer_sha256=file_hash(written),
        )
        history.keep()
        self.entries.append(entry)
        listed = [dataclasses.asdict(entry) for entry in self.entries]
        folders.write_unfinished(self.folder, {**self.manifest, "checkpoints": listed})

    def _go_on(self, last: Entry) -> None:
        """Go back to the last checkpoint, and let it be evaluated as it was."""
        path = self.folder / last.file
        if last.step != (last.epoch or 0) * self.steps_per_epoch:
            raise EvalkitError(
                f"expected as many training samples as the training in '{self.folder}' began with, "
                f"found {len(self.losses.training)}, which are not {counted(last.step, 'step')} in "
                f"{counted(last.epoch or 0, 'epoch')}; train with the same data, or choose another "
                "`folder`"
            )
        beside = self.folder / (last.optimizer or "")
        state = states.read_state(beside)
        check_state_hash(beside, file_hash(beside), last.optimizer_sha256)
        resuming.restore(
            state, path, last, self.losses.model, self.optimizer, self.scheduler, self.order
        )
        resuming.check_evaluation(path, last, self.losses.evaluate())
