"""Training: a task becomes a trajectory of checkpoints, the initialised model included."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evalkit.checkpoints import Trajectory, open_trajectory
from evalkit.checkpoints.manifest import FORMAT
from evalkit.errors import EvalkitError
from evalkit.evaluation.devices import check_device
from evalkit.settings import Settings, check_seed
from evalkit.storage.rows import TrainingStep
from evalkit.tasks import Recipe, Task
from evalkit.tasks.user_code import all_seeded
from evalkit.training import folders, optimizers, resuming
from evalkit.training.losses import Losses
from evalkit.training.running import Epoch, Training
from evalkit.version import __version__

__all__ = ["Epoch", "train"]


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
    on_failure: str | None = None,
    seed: int = 0,
    device: str = Settings.device,
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
            damping, momentum, normalise, on_failure: as in :class:`evalkit.tasks.Recipe`; None
            takes the task's own. Where another optimizer than the task's is chosen, its settings
            are its own defaults; where its step is of another kind, the learning rate has to be
            given, and there is no weight decay unless it is given.
        seed: the seed of the initial values, the order of the samples, and dropout.
        device: where the model is trained: ``cpu``, ``cuda``, ``cuda:1``. Initial values are drawn
            on the CPU, and are the same on all of them.
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
        "on_failure": on_failure,
    }
    recipe = _recipe(task.recipe, {key: v for key, v in chosen.items() if v is not None})
    seed, placed = check_seed(seed), check_device(device)
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
    manifest = _manifest(task, model, recipe, seed, placed)
    earlier = folders.training_in(folder)
    if earlier is not None:
        resuming.check_same(folder, earlier[0], manifest)
    if not folders.is_finished(folder):
        losses = Losses(task, model.to(placed), samples, validation, placed)
        training = Training(losses, recipe, seed, folder, manifest)
        entries = () if earlier is None else earlier[1]
        with folders.made(folder) if earlier is None else nullcontext(), all_seeded(seed):
            training.run(entries, on_epoch, on_step)
    return open_trajectory(folder)


def _recipe(own: Recipe, given: dict[str, Any]) -> Recipe:
    """Return the recipe of a task with what is given in its place.

    Settings that only some optimizers have are those of the task's optimizer, and of no other.
    Learning rates are not for steps of another kind: 0.001 for AdamW is as 50 for iEF.

    Raises:
        EvalkitError: a value is out of range, or a learning rate is needed.
    """
    chosen = given.get("optimizer", own.optimizer)
    if chosen != own.optimizer:
        given = {**dict.fromkeys(optimizers.OPTIONS), **given}
        optimizers.get(chosen)
        if optimizers.steps_on_outputs(chosen) != optimizers.steps_on_outputs(own.optimizer):
            if "learning_rate" not in given:
                raise EvalkitError(
                    f"expected a learning rate for the optimizer '{chosen}', found none but "
                    f"{own.learning_rate:g}, the task's for '{own.optimizer}', whose steps are of "
                    "another kind; pass `learning_rate`, such as 50 for ief, as the paper has it, "
                    "or 1, a full step, for fgn, polyak and methods"
                )
            given = {"weight_decay": 0.0, **given}
    return dataclasses.replace(own, **given)


def _manifest(
    task: Task, model: nn.Module, recipe: Recipe, seed: int, device: torch.device
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "task": task.name or None,
        "settings": dict(task.settings),
        "likelihood": task.likelihood,
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "device": device.type,
        "threads": torch.get_num_threads(),  # sums in another order differ in the last digit
        "versions": {
            "evalkit": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "checkpoints": [],
    }
