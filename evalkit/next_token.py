"""Labels of language models that predict the next token: which models, and how labels are shifted.

Everywhere in evalkit position t of the logits is compared with position t of the targets. The
labels that the Hugging Face Trainer takes are the input tokens themselves: the model's own loss
compares the logits at t with the label at t + 1.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from evalkit.errors import EvalkitError
from evalkit.likelihoods import IGNORED_LABEL

# The losses of transformers that shift the labels, by the name of their kind.
_SHIFTING = ("ForCausalLM", "ForConditionalGeneration")
# Adapters with virtual tokens in the keys and values alone.
_IN_THE_CACHE = ("PREFIX_TUNING", "CARTRIDGE")


def shifted_labels(labels: Tensor, prompt: int = 0) -> Tensor:
    """Return for each position of the logits the label of the next position.

    What is scored at position t is then -log p(label at t + 1 | tokens up to t), as in the loss of
    a causal language model. The last position, and those of a prompt but its last, have no label.

    Args:
        labels: (N, T) integers, the tokens; -100 where a token does not count.
        prompt: virtual tokens that an adapter puts before those of the input in the logits.

    Returns:
        (N, prompt + T) integers.

    Raises:
        EvalkitError: the labels are no integers of that shape.
    """
    if not isinstance(labels, Tensor) or labels.dim() != 2 or not _are_integers(labels):
        kind = (
            f"{labels.dtype} of shape {tuple(labels.shape)}"
            if isinstance(labels, Tensor)
            else type(labels).__name__
        )
        raise EvalkitError(
            f"expected a tensor of integers (samples, positions) as labels to shift, found {kind}; "
            "pass the tokens, with -100 where one does not count"
        )
    return at_positions(labels, prompt, 1)


def shifting(collate: Callable[[Any, Tensor], tuple[Any, Tensor]] | None, prompt: int = 0) -> Any:
    """Return a collate function that shifts the labels that another one leaves, or those given."""

    def shift(inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
        if collate is not None:
            inputs, targets = collate(inputs, targets)
        return inputs, shifted_labels(targets, prompt)

    return shift


def at_positions(labels: Tensor, prompt: int, shift: int) -> Tensor:
    """Return (N, T) labels behind a prompt without any, moved to the left: (N, prompt + T)."""
    before = labels.new_full((len(labels), prompt), IGNORED_LABEL)
    after = labels.new_full((len(labels), shift), IGNORED_LABEL)
    return torch.cat((before, labels, after), dim=1)[:, shift:]


def _are_integers(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def base_model(model: nn.Module) -> nn.Module:
    """Return the model of transformers inside the wrappers of peft."""
    unwrap = getattr(model, "get_base_model", None)
    found = unwrap() if unwrap is not None else model
    return found if isinstance(found, nn.Module) else model


def predicts_next(model: nn.Module) -> bool:
    """Return whether the class of a model says that its loss is that of the next token.

    Args:
        model: any; only those of transformers, in wrappers of peft or not, say so.
    """
    base = base_model(model)
    transformers: Any = sys.modules.get("transformers")  # whoever built such a model imported it
    if transformers is None or not isinstance(base, transformers.PreTrainedModel):
        return False
    if getattr(base.config, "is_encoder_decoder", False):
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = {kind.__name__ for kind in type(base).__mro__}
    # A model such as GPT2LMHeadModel has no loss_type of its own.
    return getattr(base, "loss_type", None) in _SHIFTING or bool(
        names & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    )


def prompt_length(model: nn.Module) -> int:
    """Return how many positions an adapter puts before those of the tokens in the logits."""
    config = getattr(model, "active_peft_config", None)
    kind = str(getattr(config, "peft_type", "")).rsplit(".", 1)[-1]
    if not getattr(config, "is_prompt_learning", False) or kind in _IN_THE_CACHE:
        return 0
    return int(getattr(config, "num_virtual_tokens", 0))


def _are_own_tokens(inputs: Any, targets: Any) -> bool:
    """Return whether every label that counts is the input token at its own position.

    Args:
        inputs: what the model takes.
        targets: any targets.
    """
    if not isinstance(targets, Tensor) or targets.dim() != 2 or not _are_integers(targets):
        return False
    counts = targets != IGNORED_LABEL
    return bool(counts.any()) and any(
        bool((leaf.to(targets.device) == targets)[counts].all())
        for leaf in tree_leaves(inputs)
        if isinstance(leaf, Tensor) and leaf.shape == targets.shape and _are_integers(leaf)
    )


def _copies_input(model: nn.Module, inputs: Any, targets: Any) -> bool:
    """Return whether a model that predicts the next token is asked for the one that it is given."""
    return _are_own_tokens(inputs, targets) and predicts_next(model)


def warn_of_copies(model: nn.Module, inputs: Any, targets: Any) -> None:
    """Warn where a model that predicts the next token is asked for the token that it is given."""
    if _copies_input(model, inputs, targets):
        name = type(base_model(model)).__name__
        warnings.warn(
            f"evalkit: expected the label of the next token at each position for {name}, found the "
            "tokens of the input at their own positions, as the Trainer takes labels; pass "
            "evalkit.shifted_labels(labels), or Task(..., shift_labels=True)",
            stacklevel=3,
        )


def refuse_copies(model: nn.Module, inputs: Any, targets: Any, task: str) -> None:
    """Refuse a task whose model predicts the next token and is asked for the one that it is given.

    Args:
        model: that is scored or trained.
        inputs: of some samples.
        targets: of the same samples.
        task: what the sentence calls the task.

    Raises:
        EvalkitError: every label is the input token at its own position.
    """
    if _copies_input(model, inputs, targets):
        raise EvalkitError(
            f"expected the label of the next token at each position in task '{task}', found the "
            "tokens of the input at their own positions; pass Task(..., shift_labels=True), as the "
            "Trainer shifts them, or False to score these"
        )


def check_shift(value: Any) -> None:
    """Refuse a setting that is neither True nor False, nor None for one that is not given.

    Raises:
        EvalkitError: it is something else.
    """
    if not (value is None or isinstance(value, bool)):
        raise EvalkitError(
            f"expected shift_labels to be True, False or None, found {value!r}; pass True for "
            "labels as the Trainer takes them for a causal language model"
        )
