"""The names of a checkpoint's tensors, matched with those of a model without guessing.

Wrappers put their names into every tensor's, and training modules keep more than the model. A match
gives every tensor of the model, each of its shape, under one beginning of the names; what is left
over must be something known beside a model, such as the weights of a loss, or the match is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.checkpoints.layout import EXTRA_STATE, is_averaged

# Modules that wrap another one and name it so, wherever they are; then data parallel ones.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_PARALLEL = (*_WRAPPERS, "module", "_forward_module")
# What training keeps beside the model, by the first part of a name.
_BESIDE = re.compile(
    r"(?:^|[^a-z])(?:criterions?|criteria|loss(?:es)?|metrics?|acc(?:uracy)?|auroc|auc|f1|ema|swa"
    r"|averaged?|avg|shadow|teacher|n_averaged|num_updates|class_weights?|pos_weight|lpips)(?![a-z])"
)
_MASKED_BIAS = "masked_bias"  # of GPT-2 before transformers 4.24: a constant


@dataclass(frozen=True)
class Match:
    """The values of a checkpoint under the names of a model.

    Args:
        values: exactly the names of the model's state dict.
        prefix: what stood before every name in the file.
        beside: the names in the file that are not the model's.
        hindrance: those of ``beside`` that nothing explains; a match with any is not to be used.
    """

    values: dict[str, Any]
    prefix: str
    beside: tuple[str, ...]
    hindrance: tuple[str, ...]


def match(found: Mapping[str, Any], expected: Mapping[str, Any], model: nn.Module) -> list[Match]:
    """Return how the values of a file fit a model: usable matches if any, otherwise the others.

    Args:
        found: by name, as read.
        expected: the state dict of ``model``.
        model: for the constants that earlier versions saved.
    """
    for wrappers in ((), _WRAPPERS, _PARALLEL):
        file = {_without(name, wrappers): name for name in found}
        own = {_without(name, wrappers): name for name in expected}
        if len(file) < len(found) or len(own) < len(expected):
            continue  # two become one: nothing tells which is meant
        matches = [
            fit
            for prefix in _prefixes(file, own)
            if (fit := _under(prefix, file, own, found, expected, model)) is not None
        ]
        usable = [fit for fit in matches if not fit.hindrance]
        exact = [fit for fit in usable if not fit.prefix]
        plain = [fit for fit in usable if not is_averaged(fit.prefix)]
        if matches:
            return exact or plain or usable or matches
    return []


def _without(name: str, wrappers: tuple[str, ...]) -> str:
    parts = name.split(".")
    return ".".join(part for part in parts if part not in wrappers) or name


def _prefixes(file: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """Return what may stand before every name of the model, the empty text first."""
    prefixes = {""}
    for name in sorted(own, key=len, reverse=True):
        ends = [known for known in file if known == name or known.endswith(f".{name}")]
        prefixes.update(known[: len(known) - len(name)] for known in ends)
        if ends:  # a name that is absent may be tied to another one
            break
    return sorted(prefixes)


def _under(
    prefix: str,
    file: Mapping[str, str],
    own: Mapping[str, str],
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    model: nn.Module,
) -> Match | None:
    """Return the match with one prefix, None where a value is missing or has another shape."""
    values = {own[name]: found[file[prefix + name]] for name in own if prefix + name in file}
    values |= tied(values, expected)
    if values.keys() != expected.keys():
        return None
    if not all(_same_shape(name, value, expected[name]) for name, value in values.items()):
        return None
    used = {prefix + name for name in own}
    beside = [name for name in file if name not in used]
    hindrance = [
        file[name]
        for name in beside
        if not _is_beside(name, prefix) and not _is_constant(name, found[file[name]], model)
    ]
    return Match(values, prefix, tuple(file[name] for name in beside), tuple(hindrance))


def _same_shape(name: str, value: Any, expected: Any) -> bool:
    if name.rsplit(".", 1)[-1] == EXTRA_STATE:
        return isinstance(value, Tensor) == isinstance(expected, Tensor)
    return isinstance(value, Tensor) and value.shape == expected.shape


def _is_beside(name: str, prefix: str) -> bool:
    inner = name[len(prefix) :] if name.startswith(prefix) else name
    return _BESIDE.search(inner.split(".")[0].lower()) is not None


def _is_constant(name: str, value: Any, model: nn.Module) -> bool:
    """Return whether a tensor is a buffer that the model makes by itself, with the same values."""
    if not isinstance(value, Tensor):
        return False
    last = name.rsplit(".", 1)[-1]
    if (last == _MASKED_BIAS and value.numel() == 1) or (last == "bias" and _is_causal_mask(value)):
        return True
    saved = model.state_dict().keys()
    return any(
        _equal(value, buffer)
        for known, buffer in model.named_buffers()
        if known not in saved and known.rsplit(".", 1)[-1] == last
    )


def _is_causal_mask(value: Tensor) -> bool:
    """Return whether a tensor is GPT-2's mask of later tokens, (1, 1, n, n)."""
    if value.ndim != 4 or value.shape[:2] != (1, 1) or value.shape[2] != value.shape[3]:
        return False
    return value.shape[3] > 1 and torch.equal(value, torch.ones_like(value).tril())


def _equal(value: Tensor, buffer: Tensor) -> bool:
    value, buffer = value.squeeze(), buffer.squeeze().cpu()
    return value.shape == buffer.shape and torch.allclose(value.double(), buffer.double(), 1e-3)


def tied(values: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return the absent tensors that the model ties to present ones: formats save those once."""
    present = {place: name for name, place in _places(expected) if name in values}
    return {
        name: values[present[place]]
        for name, place in _places(expected)
        if name not in values and place in present
    }


def _places(expected: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, torch.Size]]]:
    for name, value in expected.items():
        if isinstance(value, Tensor) and value.numel():
            yield name, (value.data_ptr(), value.shape)
