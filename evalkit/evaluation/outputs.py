"""What models return, and which part of it is the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from evalkit.errors import EvalkitError, shortened

_WRAP = "wrap the model so that it returns its logits"


def logits_of(output: Any) -> Tensor:
    """Return the logits: a tensor, ``logits`` of an object or a dict, or the first of several.

    The first of several values is taken where no other could be meant: none that is a tensor with
    the same axes before the last. A single number per sample, (N,), is returned as (N, 1).

    Raises:
        EvalkitError: there are none, or more than one thing that may be them.
    """
    logits = _found(output)
    with torch._C.DisableTorchFunction():  # what is looked at here is no part of the forward
        _refuse_unusual(logits)
        axes = logits.dim()
    return logits.reshape(-1, 1) if axes < 2 else logits


def _refuse_unusual(logits: Tensor) -> None:
    if logits.is_nested or logits.layout != torch.strided:
        kind = "nested" if logits.is_nested else _words(logits.layout)
        raise EvalkitError(
            f"expected logits as a dense tensor, found a {kind} one; return a padded tensor, with "
            "targets of -100 where it is padded"
        )
    if not logits.is_floating_point():
        raise EvalkitError(
            f"expected logits of real numbers, found {_words(logits.dtype)}; return what the loss "
            "takes, before any argmax or rounding"
        )


def _found(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    named = hasattr(output, "logits") or (isinstance(output, Mapping) and "logits" in output)
    if named:
        logits = output.logits if hasattr(output, "logits") else output["logits"]
        if isinstance(logits, Tensor):
            return logits
        raise EvalkitError(
            f"expected a tensor of logits from the model, found logits of type "
            f"{type(logits).__name__} in its {type(output).__name__}; let the model return them, "
            f"or {_WRAP}"
        )
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        first, *others = output
        if any(_alike(first, other) for other in tree_leaves(others)):
            raise EvalkitError(
                f"expected one output that can be the logits, found {_contents(output)}; {_WRAP} "
                "alone"
            )
        return first
    raise EvalkitError(
        "expected a model that returns a tensor, an object or a dict with logits, or a tuple that "
        f"begins with them, found {_contents(output)}; {_WRAP}"
    )


def _alike(first: Tensor, other: Any) -> bool:
    """Return whether another output may be the logits as well as the first.

    One sample tells too little: a value that all samples share may have one row.
    """
    if not isinstance(other, Tensor) or not other.is_floating_point() or first.dim() == 0:
        return False
    if other.is_nested or first.is_nested or len(first) == 1:
        return False
    return _before_classes(first) == _before_classes(other)


def _before_classes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape) if tensor.dim() < 2 else tuple(tensor.shape[:-1])


def _contents(output: Any) -> str:
    """Return what an output holds, in words."""
    kind = type(output).__name__
    if isinstance(output, Mapping) and output:
        return f"a {kind} with {shortened(', '.join(map(repr, output)))}"
    if isinstance(output, tuple | list) and output:
        return f"a {kind} of {shortened(', '.join(map(_part, output)))}"
    return f"{kind}"


def _part(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _words(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix("torch.")
