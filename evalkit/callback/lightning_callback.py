"""A callback of Lightning's Trainer that scores the model at every checkpoint of a training.

It writes the folder that ``evalkit score`` writes, row by row while training goes on, as
:class:`evalkit.callback.ScoreCallback` does under the Trainer of transformers.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalkit import likelihoods
from evalkit.callback.running import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_BATCHES,
    RunningScores,
    device_of,
    parameters_hash,
)
from evalkit.callback.trainer_batches import LABELS, Supervised, TrainerBatches, check_enough
from evalkit.checkpoints import Checkpoint
from evalkit.errors import EvalkitError
from evalkit.evaluation.devices import on_device
from evalkit.evaluation.wrapped import evaluated_module
from evalkit.extras import missing
from evalkit.settings import DEFAULT_DAMPING, DEFAULT_METHODS, Others


def _callback_class() -> Any:
    """Return what callbacks of Lightning are made of, whichever of its two packages is there.

    Raises:
        EvalkitError: there is none.
    """
    try:
        return importlib.import_module("lightning.pytorch").Callback
    except ImportError as error:
        try:
            return importlib.import_module("pytorch_lightning").Callback
        except ImportError:
            purpose = "evalkit.callback.LightningScoreCallback"
            raise missing("the package lightning", purpose, error, "lightning") from error


_Callback: Any = _callback_class()
_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")
"""Strategies under which no process holds the whole model."""


class LightningScoreCallback(_Callback):
    """Scores the trainable parameters at every checkpoint, on the same batches of the training set.

    The batches go through the training dataloader's own ``collate_fn``. The model is scored in eval
    mode and in the precision of its parameters, without autocast. Training itself goes on as
    without the callback. Rows are those of :class:`evalkit.callback.ScoreCallback`, with
    ``trainer.global_step`` as their step; means over batches go to every logger of the Trainer, by
    the names that ``evalkit export`` gives them: ``gamma/ief``, ``ratio/ief``, ``gamma/floor``.

    What cannot be scored at all is refused when training begins. What fails later is a warning. In
    a distributed training the first process scores.

    Args:
        folder: the folder of the run; new, or the one of the training that is resumed.
        methods: names, with settings of their own if wanted.
        damping: one number or several; each method is scored at each.
        batches: per checkpoint.
        batch_size: samples per batch, drawn without replacement.
        seed: the seed of the batches and of methods that draw samples.
        dtype: as in :func:`evalkit.linearize`.
        micro_batch_size: as in :func:`evalkit.linearize`.
        initial: score the model before the first step too, as ``checkpoint-0``.
        task: what the run calls what is trained; None for the class of the model.
        others: as in :func:`evalkit.score`.
        likelihood: what the outputs mean, whose loss the training minimises.
        model: the name of the submodule that makes outputs of inputs, as ``"net"``; None for the
            LightningModule itself.
        pair: returns inputs and targets of what the dataloader makes; None where that is a pair of
            them, or a mapping with ``labels`` beside the inputs.

    Raises:
        EvalkitError: a method or likelihood is unknown, or a number is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        methods: Sequence[str] | str = DEFAULT_METHODS,
        damping: float | Sequence[float] = DEFAULT_DAMPING,
        batches: int = DEFAULT_BATCHES,
        batch_size: int = DEFAULT_BATCH_SIZE,
        seed: int = 0,
        dtype: str | None = None,
        micro_batch_size: int | None = None,
        initial: bool = True,
        task: str | None = None,
        others: Others = "block",
        likelihood: str = "categorical",
        model: str | None = None,
        pair: Callable[[Any], tuple[Any, Tensor]] | None = None,
    ) -> None:
        sizes = batches, batch_size, seed
        self._run = RunningScores.of(
            folder, methods, damping, *sizes, dtype, micro_batch_size, others
        )
        likelihoods.get(likelihood)
        self.folder, self.settings = self._run.folder, self._run.settings
        self.initial, self.task, self.likelihood = initial, task, likelihood
        self.model, self.pair = model, pair
        self._batches: TrainerBatches | None = None
        self._steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check everything, then score the model as it is before the next step.

        Raises:
            EvalkitError: this training cannot be scored, or the folder holds another run.
        """
        if not trainer.is_global_zero:
            return
        _refuse_sharded(trainer)
        self._steps = _steps(trainer)
        model = self._model(pl_module)
        self._optimizer(trainer)
        self._batches = _batches(trainer)
        check_enough(self._batches, self.settings.batch_size)
        with torch.inference_mode(False):
            self._draw(model, 0)
        task, place = self.task or type(model).__name__, trainer.default_root_dir
        described = self._run.described(model, task, self.likelihood, place, self._steps)
        self._run.begin(described, trainer.global_step)
        if trainer.global_step > 0 or self.initial:
            self._score(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Any, pl_module: Any, checkpoint: Mapping[str, Any]
    ) -> None:
        """Score the model that is saved."""
        if self._run.is_open and trainer.is_global_zero:
            self._score(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Sort the tables and mark the run as finished; every checkpoint is saved by now."""
        if self._run.is_open and trainer.is_global_zero:
            self._run.end()

    def _score(self, trainer: Any, pl_module: Any) -> None:
        """Score what this checkpoint lacks, and log its means over batches."""
        name, model = f"checkpoint-{trainer.global_step}", self._model(pl_module)
        where = partial(self._checkpoint, trainer, model, name)
        # Checkpoints are saved within validation, too.
        with torch.inference_mode(False), torch.enable_grad():
            draw, optimizer = partial(self._draw, model), self._optimizer(trainer)
            means = self._run.score(where, name, model, draw, optimizer)
        for logger in trainer.loggers if means else ():
            logger.log_metrics(dict(means), step=trainer.global_step)

    def _checkpoint(self, trainer: Any, model: nn.Module, name: str) -> Checkpoint:
        return Checkpoint(
            name=name,
            path=Path(trainer.default_root_dir) / name,
            step=trainer.global_step,
            epoch=None,
            progress=min(1.0, trainer.global_step / self._steps),
            sha256=parameters_hash(model),
        )

    def _model(self, pl_module: Any) -> nn.Module:
        """Return what makes outputs of inputs.

        Raises:
            EvalkitError: it has no submodule of that name.
        """
        found = pl_module if self.model is None else getattr(pl_module, self.model, None)
        if not isinstance(found, nn.Module):
            raise EvalkitError(
                f"expected a module '{self.model}' in {type(pl_module).__name__}, found "
                f"{type(found).__name__}; name one in LightningScoreCallback(..., model=...)"
            )
        return evaluated_module(found)

    def _optimizer(self, trainer: Any) -> torch.optim.Optimizer | None:
        """Return the optimizer, for methods that have it as an input, None without any.

        Raises:
            EvalkitError: there are several, or it cannot be told its step.
        """
        if not self._run.takes_optimizer:
            return None
        if len(trainer.optimizers) != 1:
            raise EvalkitError(
                "expected one optimizer for the method 'optimizer', found "
                f"{len(trainer.optimizers)}; score other methods"
            )
        self._run.check_optimizer(trainer.optimizers[0])
        return trainer.optimizers[0]

    def _draw(self, model: nn.Module, batch: int) -> Supervised:
        """Return a batch on the device of the model.

        Raises:
            EvalkitError: it is of a form that tells no inputs and targets.
        """
        assert self._batches is not None
        made = self._batches.collated(self.settings, batch)
        if self.pair is not None:
            inputs, targets = self.pair(made)
        elif isinstance(made, (tuple, list)) and len(made) == 2:
            inputs, targets = made
        elif isinstance(made, Mapping) and LABELS in made:
            inputs = {name: value for name, value in made.items() if name != LABELS}
            targets = made[LABELS]
        else:
            raise EvalkitError(
                "expected batches of inputs and targets, or mappings with 'labels', found "
                f"{type(made).__name__}; pass LightningScoreCallback(..., pair=...), which returns "
                "the two of a batch"
            )
        inputs, targets = on_device((inputs, targets), device_of(model))
        inputs = tuple(inputs) if isinstance(inputs, list) else inputs
        return Supervised(inputs, targets, self.likelihood)


def _batches(trainer: Any) -> TrainerBatches:
    """Return the training samples.

    Raises:
        EvalkitError: there is no one dataloader.
    """
    loader = trainer.train_dataloader
    dataset, collate = (getattr(loader, name, None) for name in ("dataset", "collate_fn"))
    if dataset is None or collate is None:
        raise EvalkitError(
            "expected one training dataloader with a dataset and a collate_fn, found "
            f"{type(loader).__name__}; train with a torch DataLoader, or without the callback"
        )
    return TrainerBatches(dataset, collate)


def _steps(trainer: Any) -> int:
    """Return the steps of the training.

    Raises:
        EvalkitError: it has no end.
    """
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or steps < 1:
        raise EvalkitError(
            f"expected a training with an end, found {steps:g} steps; set max_steps or max_epochs "
            "of the Trainer"
        )
    return int(steps)


def _refuse_sharded(trainer: Any) -> None:
    """Refuse a training in which no process holds the whole model.

    Raises:
        EvalkitError: parameters are sharded.
    """
    strategy = type(trainer.strategy).__name__
    if strategy.startswith(_SHARDED):
        raise EvalkitError(
            "expected a training in which every process holds the whole model, found sharded "
            f"parameters ({strategy}); score the saved checkpoints with evalkit score"
        )
