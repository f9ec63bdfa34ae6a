"""Batches as a Hugging Face Trainer makes them, in the form that is scored.

:func:`supervised` is what the losses of transformers mean, read off the model and the batch.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evalkit.cells import batch_seed, draw_batch
from evalkit.errors import EvalkitError
from evalkit.likelihoods import IGNORED_LABEL
from evalkit.settings import Settings
from evalkit.tasks.user_code import all_seeded, user_code

LABELS = "labels"
_WRAPPED = "data_collator"
"""Where the Trainer's collator that removes columns keeps the user's."""
_CAUSAL = ("ForCausalLM", "ForConditionalGeneration")
_CLASSIFICATION = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForVideoClassification",
    "ForAudioClassification",
)


@dataclass(frozen=True)
class Supervised:
    """One batch, as it is scored.

    Attributes:
        inputs: what the model's forward takes, without labels.
        targets: what the likelihood takes, sample axis first.
        likelihood: what the model's loss says that its outputs mean.
    """

    inputs: dict[str, Any]
    targets: Tensor
    likelihood: str


def supervised(model: nn.Module, batch: Mapping[str, Any]) -> Supervised:
    """Return inputs, targets and likelihood of a batch that holds ``labels``.

    Encoder-decoder models that generate are given the decoder inputs that they make of the labels
    themselves. Where a causal language model predicts the label of the next position, the labels
    move one to the left. Sequence and image classification follow the ``problem_type`` of the
    configuration, or its absence, as the library's loss does. Other labels stay as they are, and
    real numbers among them are gaussian.

    Args:
        model: of transformers, in wrappers of peft or not.
        batch: what a data collator returns.

    Raises:
        EvalkitError: the batch has no labels.
    """
    labels = batch.get(LABELS)
    if not isinstance(labels, Tensor):
        found = ", ".join(f"'{name}'" for name in batch) or "nothing"
        raise EvalkitError(
            f"expected a tensor '{LABELS}' in the batches of the data collator, found {found}; "
            f"score a model whose loss is that of '{LABELS}'"
        )
    inputs = {name: value for name, value in batch.items() if name != LABELS and value is not None}
    base = base_model(model)
    if labels.dim() > 1 and not labels.is_floating_point():
        config = getattr(base, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            prepare = getattr(base, "prepare_decoder_input_ids_from_labels", None)
            if prepare is not None and "decoder_input_ids" not in inputs:
                inputs["decoder_input_ids"] = prepare(labels=labels)
        elif _predicts_next(base):
            labels = _next_labels(labels, _prompt_length(model))
    return Supervised(inputs, labels, _likelihood(base, labels))


def base_model(model: nn.Module) -> nn.Module:
    """Return the model of transformers inside the wrappers of peft."""
    unwrap = getattr(model, "get_base_model", None)
    found = unwrap() if unwrap is not None else model
    return found if isinstance(found, nn.Module) else model


def _predicts_next(base: nn.Module) -> bool:
    """Return whether the loss of a model compares each position with the label of the next."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = {kind.__name__ for kind in type(base).__mro__}
    # A model such as GPT2LMHeadModel has no loss_type of its own.
    return getattr(base, "loss_type", None) in _CAUSAL or bool(
        names & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    )


def _prompt_length(model: nn.Module) -> int:
    """Return how many positions an adapter puts before those of the tokens in the logits."""
    config = getattr(model, "active_peft_config", None)
    # Prefix tuning has virtual tokens too, but in the keys and values alone.
    kind = str(getattr(config, "peft_type", "")).rsplit(".", 1)[-1]
    if not getattr(config, "is_prompt_learning", False) or kind == "PREFIX_TUNING":
        return 0
    return int(getattr(config, "num_virtual_tokens", 0))


def _next_labels(labels: Tensor, prompt: int) -> Tensor:
    """Return for each position of the logits the label of the next: (N, prompt + T)."""
    before = labels.new_full((len(labels), prompt), IGNORED_LABEL)
    last = labels.new_full((len(labels), 1), IGNORED_LABEL)
    return torch.cat((before, labels, last), dim=1)[:, 1:]


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
        indices = draw_batch(len(self), settings.batch_size, settings.seed, batch).tolist()
        with (
            all_seeded(batch_seed(settings.seed, batch, "collate")),
            user_code("the data collator of the Trainer"),
        ):
            # A fresh copy starts from the same state as every other.
            made = _apart(self._collate)([self._dataset[index] for index in indices])
        if not isinstance(made, Mapping):
            raise EvalkitError(
                "expected a mapping with the model's arguments from the data collator, found "
                f"{type(made).__name__}; return a dict of tensors"
            )
        return made


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
