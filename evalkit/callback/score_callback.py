"""A callback of the Hugging Face Trainer that scores the model at every save of a fine-tune.

It writes the folder that ``evalkit score`` writes, row by row while training goes on, so that
``evalkit report`` shows the run as far as it is. Training itself goes on as without the callback.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evalkit.callback.running import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_BATCHES,
    RunningScores,
    device_of,
    parameters_hash,
)
from evalkit.callback.trainer_batches import (
    Supervised,
    TrainerBatches,
    check_enough,
    shifts_labels,
    supervised,
)
from evalkit.callback.trainer_log import calling_trainer
from evalkit.checkpoints import Checkpoint
from evalkit.checkpoints.saved import find_saved, holds_saved, named_adapters, saved_hash
from evalkit.checkpoints.trainer_state import whole_epoch
from evalkit.errors import EvalkitError
from evalkit.evaluation.devices import on_device
from evalkit.evaluation.wrapped import evaluated_module
from evalkit.extras import missing
from evalkit.next_token import base_model, check_shift
from evalkit.settings import DEFAULT_DAMPING, DEFAULT_METHODS, Others

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise missing("the package transformers", "evalkit.callback", error) from error


class ScoreCallback(TrainerCallback):
    """Scores the trainable parameters at every save, on the same batches of the training set.

    The batches go through the Trainer's own data collator. The model is scored in eval mode and in
    the precision of its parameters, without autocast, as ``evalkit score`` scores a checkpoint. In
    a distributed training the first process scores while the others wait at their next step.

    Means over batches are logged through the Trainer, to everything that it reports to, by the
    names that ``evalkit export`` gives them: ``gamma/ief``, ``ratio/ief``, ``gamma/floor``.

    What cannot be scored at all is refused when training begins. What fails later is a warning:
    training goes on, and the batch is recorded in ``failures.csv``; where nothing could be scored
    so far and a second batch fails too, that checkpoint has no more rows.

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
        shift_labels: whether position t of the logits is compared with the label at t + 1; None to
            find out from the model's own loss, as
            :func:`evalkit.callback.trainer_batches.shifts_labels`.
        others: as in :func:`evalkit.score`.

    Raises:
        EvalkitError: a method is unknown, or a number is out of range.
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
        shift_labels: bool | None = None,
        others: Others = "block",
    ) -> None:
        sizes = batches, batch_size, seed
        self._run = RunningScores.of(
            folder, methods, damping, *sizes, dtype, micro_batch_size, others
        )
        self.folder, self.settings = self._run.folder, self._run.settings
        self.initial, self.task = initial, task
        check_shift(shift_labels)
        self.shift_labels = shift_labels
        self._batches: TrainerBatches | None = None
        self._trainer: Any = None
        self._unlogged: dict[str, float] = {}
        self._shifts = False
        self._optimizer: torch.optim.Optimizer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check everything, then score the model as it is before the next step.

        Raises:
            EvalkitError: this training cannot be scored, or the folder holds another run.
        """
        if not state.is_world_process_zero:
            return
        model, loader = evaluated_module(kwargs["model"]), kwargs["train_dataloader"]
        self._optimizer = kwargs.get("optimizer")
        self._run.check_optimizer(self._optimizer)
        _refuse_sharded(args)
        _refuse_smoothing(args)
        self._batches = TrainerBatches(loader.dataset, loader.collate_fn)
        check_enough(self._batches, self.settings.batch_size)
        provenance = self._described(args, state, model)
        self._run.begin(provenance, state.global_step)
        self._trainer = calling_trainer(self)
        if state.global_step > 0 or self.initial:
            # Not every callback is ready for logs before all have seen the beginning.
            self._unlogged = self._score(args, state, model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the scores of the model before the step."""
        self._log(self._unlogged)
        self._unlogged = {}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the model that was just saved."""
        if self._batches is not None and state.is_world_process_zero:
            self._optimizer = kwargs.get("optimizer", self._optimizer)
            self._log(self._score(args, state, evaluated_module(kwargs["model"])))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sort the tables and mark the run as finished."""
        self._batches = self._trainer = None
        if state.is_world_process_zero:
            self._run.end()

    def _log(self, means: dict[str, float]) -> None:
        """Log means through the Trainer, to everything that it reports to."""
        if means and self._trainer is not None:
            self._trainer.log(dict(means))

    def _described(self, args: Any, state: Any, model: nn.Module) -> dict[str, Any]:
        """Return what ``run.json`` says of this training, checkpoints aside."""
        assert self._batches is not None
        batch = on_device(dict(self._batches.draw(self.settings, 0)), device_of(model))
        if self.shift_labels is None:
            self._shifts = shifts_labels(model, batch)
        else:
            self._shifts = self.shift_labels
        likelihood = supervised(model, batch, self._shifts).likelihood
        task = self.task or type(base_model(model)).__name__
        place, steps = args.output_dir, state.max_steps
        described = self._run.described(model, task, likelihood, place, steps)
        return {**described, **({"shift_labels": True} if self._shifts else {})}

    def _score(self, args: Any, state: Any, model: nn.Module) -> dict[str, float]:
        """Score what this checkpoint lacks; return its means over batches."""
        name = f"checkpoint-{state.global_step}"
        checkpoint = partial(_checkpoint, args, state, model, name)
        return self._run.score(checkpoint, name, model, partial(self._draw, model), self._optimizer)

    def _draw(self, model: nn.Module, batch: int) -> Supervised:
        assert self._batches is not None
        drawn = on_device(dict(self._batches.draw(self.settings, batch)), device_of(model))
        return supervised(model, drawn, self._shifts)


def _checkpoint(args: Any, state: Any, model: nn.Module, name: str) -> Checkpoint:
    """Return the checkpoint that the model is at."""
    path = Path(args.output_dir) / name
    return Checkpoint(
        name=name,
        path=path,
        step=state.global_step,
        epoch=whole_epoch(state.epoch or 0.0),
        progress=min(1.0, state.global_step / state.max_steps),
        sha256=saved_hash(find_saved(path)) if _is_saved(path) else parameters_hash(model),
    )


def _is_saved(path: Path) -> bool:
    """Return whether a folder holds one saved model or adapter, not several."""
    named = len(named_adapters(path))
    return named == 1 if not holds_saved(path) else not named


def _refuse_smoothing(args: Any) -> None:
    """Refuse a training on another loss than the likelihood of the labels.

    Raises:
        EvalkitError: labels are smoothed.
    """
    if getattr(args, "label_smoothing_factor", 0.0):
        raise EvalkitError(
            "expected a training on the likelihood of its labels, found label_smoothing_factor "
            f"{args.label_smoothing_factor:g}; train without it, or without ScoreCallback"
        )


def _refuse_sharded(args: Any) -> None:
    """Refuse a training in which no process holds the whole model.

    Raises:
        EvalkitError: parameters are sharded.
    """
    deepspeed = getattr(args, "hf_deepspeed_config", None)
    if getattr(args, "fsdp", None) or (deepspeed is not None and deepspeed.is_zero3()):
        raise EvalkitError(
            "expected a training in which every process holds the whole model, found sharded "
            "parameters (FSDP or ZeRO stage 3); score the saved checkpoints with evalkit score"
        )
