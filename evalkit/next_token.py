"""Labels of language models that predict the next token: which models, and how labels are shifted.

Everywhere in evalkit position t of the logits is compared with position t of the targets. The
labels that the Hugging Face Trainer takes are the input tokens themselves: the model's own loss
compares the logits at t with the label at t + 1.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
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


def _are_tokens(targets: Any) -> bool:
    return isinstance(targets, Tensor) and targets.dim() == 2 and _are_integers(targets)


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
    if not _is_of_transformers(base) or getattr(base.config, "is_encoder_decoder", False):
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    # A model such as GPT2LMHeadModel has no loss_type of its own.
    return getattr(base, "loss_type", None) in _SHIFTING or _is_one_of(base, NAMES.values())


def answers_in_words(model: nn.Module) -> bool:
    """Return whether a model is an encoder-decoder of transformers that answers in words."""
    base = base_model(model)
    if not _is_of_transformers(base):
        return False
    from transformers.models.auto import modeling_auto

    names = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    return _is_one_of(base, names.values())


def _is_of_transformers(base: nn.Module) -> bool:
    transformers: Any = sys.modules.get("transformers")  # whoever built such a model imported it
    return transformers is not None and isinstance(base, transformers.PreTrainedModel)


def _is_one_of(base: nn.Module, names: Iterable[Any]) -> bool:
    return not {kind.__name__ for kind in type(base).__mro__}.isdisjoint(map(str, names))


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
    if not _are_tokens(targets):
        return False
    counts = targets != IGNORED_LABEL
    return bool(counts.any()) and any(
        bool((leaf.to(targets.device) == targets)[counts].all())
        for leaf in tree_leaves(inputs)
        if isinstance(leaf, Tensor) and leaf.shape == targets.shape and _are_integers(leaf)
    )


def _makes_decoder_inputs(model: nn.Module, inputs: Any, targets: Any) -> bool:
    """Return whether a model that answers in words is not told the words before each position.

    Some classes, such as BART's, then take the tokens of their *input* instead of failing. Where
    the labels are those tokens, that is what was meant.
    """
    told = {"decoder_input_ids", "decoder_inputs_embeds"}
    if not _are_tokens(targets) or (isinstance(inputs, Mapping) and told & inputs.keys()):
        return False
    # Given by position, the inputs of the decoder follow those of the encoder.
    by_position = isinstance(inputs, tuple) and len(inputs) > 2
    return answers_in_words(model) and not by_position and not _are_own_tokens(inputs, targets)


def warn_of_labels(model: nn.Module, inputs: Any, targets: Any) -> None:
    """Warn where labels do not mean what the loss of a language model makes of them."""
    name = type(base_model(model)).__name__
    if _are_own_tokens(inputs, targets) and predicts_next(model):
        warnings.warn(
            f"evalkit: expected the label of the next token at each position for {name}, found the "
            "tokens of the input at their own positions, as the Trainer takes labels; pass "
            "evalkit.shifted_labels(labels), or Task(..., shift_labels=True)",
            stacklevel=3,
        )
    if _makes_decoder_inputs(model, inputs, targets):
        warnings.warn(f"evalkit: {_no_decoder_inputs(name)}", stacklevel=3)


def refuse_labels(
    model: nn.Module, inputs: Any, targets: Any, task: str, shift: bool | None
) -> None:
    """Refuse a task whose labels do not mean what the loss of its model makes of them.

    Args:
        model: that is scored or trained.
        inputs: the inputs of some samples.
        targets: the targets of the same samples.
        task: what the sentence calls the task.
        shift: what the task says about the shift of labels, None where it says nothing.

    Raises:
        EvalkitError: the model predicts the next token, and each label is the input token at its
            own position while the task says nothing about a shift; or it answers in words, and is
            not told the words before each position.
    """
    if shift is None and _are_own_tokens(inputs, targets) and predicts_next(model):
        raise EvalkitError(
            f"expected the label of the next token at each position in task '{task}', found the "
            "tokens of the input at their own positions; pass Task(..., shift_labels=True), as the "
            "Trainer shifts them, or False to score these"
        )
    if _makes_decoder_inputs(model, inputs, targets):
        raise EvalkitError(f"task '{task}': {_no_decoder_inputs(type(base_model(model)).__name__)}")


def _no_decoder_inputs(name: str) -> str:
    return (
        f"expected 'decoder_input_ids' among the inputs of {name}, found none, for which it takes "
        "the tokens of its input; pass model.prepare_decoder_input_ids_from_labels(labels), as the "
        "Trainer does"
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
