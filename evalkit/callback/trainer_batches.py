"""Batches as a Hugging Face Trainer makes them, in the form that is scored.

:func:`supervised` is what the losses of transformers mean, read off the model and the batch.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evalkit import likelihoods
from evalkit.errors import EvalkitError
from evalkit.likelihoods import IGNORED_LABEL
from evalkit.next_token import at_positions, base_model, predicts_next, prompt_length
from evalkit.settings import Settings
from evalkit.study.batches import batch_seed, draw_batch
from evalkit.tasks.user_code import all_seeded, user_code

LABELS = "labels"
_WRAPPED = "data_collator"
"""Where the Trainer's collator that removes columns keeps the user's."""
_CLASSIFICATION = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForVideoClassification",
    "ForAudioClassification",
)
# Of the difference between the two readings of the labels, how far the model's own loss may be off.
_SAME_LOSS = 0.05
# Of the loss, how far the two readings must be apart.
_APART = 1e-4


@dataclass(frozen=True)
class Supervised:
    """One batch, as it is scored.

    Attributes:
        inputs: what the model's forward takes, without labels.
        targets: what the likelihood takes, sample axis first.
        likelihood: what the model's loss says that its outputs mean.
    """

    inputs: Any
    targets: Tensor
    likelihood: str


def supervised(
    model: nn.Module, batch: Mapping[str, Any], shift_labels: bool | None = None
) -> Supervised:
    """Return inputs, targets and likelihood of a batch that holds ``labels``.

    Encoder-decoder models that generate are given the decoder inputs that they make of the labels
    themselves. Where a causal language model predicts the label of the next position, the labels
    move one to the left. Sequence and image classification follow the ``problem_type`` of the
    configuration, or its absence, as the library's loss does. Other labels stay as they are, and
    real numbers among them are gaussian.

    Args:
        model: the model of transformers, in wrappers of peft or not.
        batch: what a data collator returns.
        shift_labels: whether token labels move one to the left; None to find out by
            :func:`shifts_labels`.

    Raises:
        EvalkitError: the batch has no labels, or as for :func:`shifts_labels`.
    """
    labels, inputs = _labels(batch), _inputs(batch)
    base = base_model(model)
    if labels.dim() > 1 and _is_encoder_decoder(base) and not labels.is_floating_point():
        prepare = getattr(base, "prepare_decoder_input_ids_from_labels", None)
        if prepare is not None and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = prepare(labels=labels)
    elif _may_shift(base, labels):
        shift = shifts_labels(model, batch) if shift_labels is None else shift_labels
        labels = at_positions(labels, prompt_length(model), int(shift))
    return Supervised(inputs, labels, _likelihood(base, labels))


def _labels(batch: Mapping[str, Any]) -> Tensor:
    labels = batch.get(LABELS)
    if not isinstance(labels, Tensor):
        found = ", ".join(f"'{name}'" for name in batch) or "nothing"
        raise EvalkitError(
            f"expected a tensor '{LABELS}' in the batches of the data collator, found {found}; "
            f"score a model whose loss is that of '{LABELS}'"
        )
    return labels


def _inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != LABELS and value is not None}


def _is_encoder_decoder(base: nn.Module) -> bool:
    return bool(getattr(getattr(base, "config", None), "is_encoder_decoder", False))


def _may_shift(base: nn.Module, labels: Tensor) -> bool:
    """Return whether labels may be those of tokens, (N, T), in the model's own input."""
    tokens = labels.dim() == 2 and not labels.is_floating_point()
    return tokens and not _is_encoder_decoder(base) and _likelihood(base, labels) == "categorical"


def shifts_labels(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Return whether the loss of a model compares each position with the label of the next.

    The model is asked: its own loss of the batch is the mean over the labels at their own
    positions, or one to the left of them. Some classes named ``ForCausalLM`` do not shift. Where
    the loss is neither, as with an auxiliary loss, or the model returns none, the class decides, if
    transformers knows it; a loss that is more than that of the labels is said in a warning.

    Args:
        model: it is left as it was.
        batch: what a data collator returns, on the device of the model.

    Raises:
        EvalkitError: the batch has no labels, or neither loss nor class tells.
    """
    labels, base = _labels(batch), base_model(model)
    if not _may_shift(base, labels):
        return False
    output = _output(model, batch)
    found, expected = _losses(output, labels, prompt_length(model))
    if found is not None and expected is not None:
        gap = abs(expected[0] - expected[1])
        near = [abs(found - value) <= _SAME_LOSS * gap for value in expected]
        if any(near) and gap > _APART * abs(found):
            return near[1]
    name, by_class = type(base).__name__, _by_class(base)
    if by_class is None:
        means = "no loss" if found is None else f"the loss {found:.6g}"
        others = "" if expected is None else f", not {expected[0]:.6g} or {expected[1]:.6g}"
        raise EvalkitError(
            f"expected a model whose loss is the mean over token labels at their own positions or "
            f"one to the left, found {means} of {name}{others}; pass "
            "ScoreCallback(..., shift_labels=True) where it predicts the next token, or False"
        )
    if found is not None and expected is not None:
        what = "of the next tokens" if by_class else "of the labels at their own positions"
        warnings.warn(
            f"evalkit: expected the loss {what}, {expected[by_class]:.6g}, of {name}, found "
            f"{found:.6g}; scores are those of the former: pass ScoreCallback(..., "
            f"shift_labels={not by_class}) if that is the other reading",
            stacklevel=2,
        )
    return by_class


def _output(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """Return what a model makes of a batch with its labels, None where it takes none."""
    with evaluated(model), torch.no_grad():
        try:
            return model(**_inputs(batch), **{LABELS: _labels(batch)})
        except Exception:  # what else it cannot do is said when it is scored
            return None


def _losses(
    output: Any, labels: Tensor, prompt: int
) -> tuple[float | None, tuple[float, float] | None]:
    """Return a model's own loss, and that of its labels as they are and shifted, where known."""
    own, logits = (getattr(output, name, None) for name in ("loss", "logits"))
    if isinstance(output, Mapping):
        own, logits = output.get("loss"), output.get("logits")
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        return None, None
    meaning, means = likelihoods.get("categorical"), []
    for shift in (0, 1):
        targets = at_positions(labels, prompt, shift)
        counts = targets != IGNORED_LABEL
        if targets.shape != logits.shape[:2] or not counts.any():
            return None, None
        kept = counts.any(1)  # the shift may leave a sample without any label
        losses = meaning.losses(logits[kept].float(), meaning.check(logits[kept], targets[kept]))
        means.append(float(losses.sum() / counts.sum()))
    single = isinstance(own, Tensor) and own.numel() == 1
    return (float(own) if single and own is not None else None), (means[0], means[1])


def _by_class(base: nn.Module) -> bool | None:
    """Return what the class of a model says of its labels; None for a class of other libraries."""
    if predicts_next(base):
        return True
    # Losses of transformers without a shift: token classification, masked words.
    return False if getattr(base, "loss_type", None) is not None else None


def _likelihood(base: nn.Module, labels: Tensor) -> str:
    config = getattr(base, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem is None and getattr(base, "loss_type", None) in _CLASSIFICATION:
        if getattr(config, "num_labels", None) == 1:
            problem = "regression"
        elif labels.is_floating_point():
            problem = "multi_label_classification"
    if problem == "multi_label_classification":
        return "bernoulli"
    return "gaussian" if problem == "regression" or labels.is_floating_point() else "categorical"


class TrainerBatches:
    """The training samples of a Trainer, drawn in the batches of a study.

    A batch is the same whenever it is drawn, masking and augmentation included, and drawing it
    leaves every generator as it was: those of torch, numpy and Python, and the collator's own.

    Args:
        dataset: has a length and an item for each index.
        collate: makes a batch of a list of items.

    Raises:
        EvalkitError: the data set has no length or no items.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Mapping[str, Any]]) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise EvalkitError(
                "expected a training set with a length, found a stream "
                f"({type(dataset).__name__}); score it with a data set that has an index"
            )
        self._dataset = dataset
        self._collate = _apart(collate)

    def __len__(self) -> int:
        return len(self._dataset)

    def draw(self, settings: Settings, batch: int) -> Mapping[str, Any]:
        """Return what the collator makes of the samples of one batch.

        Raises:
            EvalkitError: the data set or the collator fails, or returns no mapping.
        """
        made = self.collated(settings, batch)
        if not isinstance(made, Mapping):
            raise EvalkitError(
                "expected a mapping with the model's arguments from the data collator, found "
                f"{type(made).__name__}; return a dict of tensors"
            )
        return made

    def collated(self, settings: Settings, batch: int) -> Any:
        """Return what the collator makes of the samples of one batch, whatever it is.

        Raises:
            EvalkitError: the data set or the collator fails.
        """
        indices = draw_batch(len(self), settings.batch_size, settings.seed, batch).tolist()
        with (
            all_seeded(batch_seed(settings.seed, batch, "collate")),
            user_code("the data collator of the Trainer"),
        ):
            # A fresh copy starts from the same state as every other.
            return _apart(self._collate)([self._dataset[index] for index in indices])


def _apart(collate: Any) -> Any:
    """Return a collator that shares everything with another but generators of random numbers."""
    if not isinstance(getattr(collate, "__dict__", None), dict) or isinstance(
        collate, FunctionType | nn.Module
    ):
        return collate
    twin = copy.copy(collate)
    for name, value in vars(collate).items():
        if isinstance(value, torch.Generator | np.random.Generator | random.Random):
            vars(twin)[name] = copy.deepcopy(value)
        elif name == _WRAPPED:
            vars(twin)[name] = _apart(value)
    return twin


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, without autocast, and leave everything as it was."""
    modes = [(module, module.training) for module in model.modules()]
    wrapped, plain = (model.__dict__.get(name) for name in ("forward", "_original_forward"))
    # Under mixed precision the Trainer replaces the forward by one that casts.
    if wrapped is not None and plain is not None:
        model.__dict__["forward"] = plain
    try:
        model.eval()
        with all_seeded(0):
            yield
    finally:
        if wrapped is not None:
            model.__dict__["forward"] = wrapped
        for module, mode in modes:
            module.training = mode


def check_enough(batches: TrainerBatches, batch_size: int) -> None:
    """Refuse a batch size above the number of training samples.

    Raises:
        EvalkitError: there are fewer.
    """
    if batch_size > len(batches):
        raise EvalkitError(
            f"expected a batch_size of at most {len(batches)}, the samples of the training set, "
            f"found {batch_size}; lower it"
        )
