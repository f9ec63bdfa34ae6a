"""A batch in the forms that users have it, as the tensors that are evaluated.

What comes in is left as it is: values that autograd would change or cannot use are detached or
copied.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from evalkit.counts import counted
from evalkit.errors import EvalkitError, reason

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a model's forward takes: a tensor, positional arguments, or keyword arguments."""


def describe(value: Any) -> str:
    """Return the shape of a tensor, or the type of anything else."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def given_inputs(model: nn.Module, inputs: Any) -> Inputs:
    """Return inputs as the forward takes them.

    A mapping (a tokenizer's output) holds keyword arguments, a tuple positional ones. So does a
    list, as a DataLoader collates them, unless the forward does not take as many: then the list is
    its one argument. Arrays become tensors in any nesting.

    Args:
        model: that takes them.
        inputs: as given.

    Raises:
        EvalkitError: a value cannot be used; the sentence says what to pass.
    """
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)  # a plain one, whose leaves are seen
    elif isinstance(inputs, list):
        inputs = tuple(inputs) if _takes(model, inputs) else (inputs,)
    found: Inputs = tree_map(_input, inputs)
    return found


def _takes(model: nn.Module, arguments: list[Any]) -> bool:
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # of a forward that does not say what it takes
        return True
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _input(value: Any) -> Any:
    value = as_tensor(value)
    if not isinstance(value, Tensor):
        return value
    refuse_unusual(value, "inputs")
    return _own(value).requires_grad_(value.requires_grad)


def given_targets(targets: Any) -> Tensor:
    """Return targets as a tensor of at least one sample, from a tensor, an array or numbers.

    Raises:
        EvalkitError: they are something else.
    """
    if isinstance(targets, tuple | list):
        targets = array_of_numbers(targets)
    targets = as_tensor(targets)
    if not isinstance(targets, Tensor) or (
        not targets.is_nested and (targets.dim() == 0 or len(targets) == 0)
    ):
        raise EvalkitError(
            "expected a tensor of targets with at least one sample on axis 0, found "
            f"{describe(targets)}; pass a batch"
        )
    refuse_unusual(targets, "targets")
    if targets.is_complex():
        raise EvalkitError(
            "expected targets of real numbers, found complex ones; pass their real and imaginary "
            "parts"
        )
    return _own(targets)


def array_of_numbers(values: Any) -> Any:
    """Return a list of numbers, or of lists of numbers, a row for each sample, as an array.

    Raises:
        EvalkitError: the rows differ in length, or are tensors, which a loader collates the parts
            of a target to, with the sample axis inside.
    """
    if any(len(getattr(leaf, "shape", ())) for leaf in tree_leaves(values)):
        raise EvalkitError(
            f"expected targets with the samples on axis 0, found a {type(values).__name__} of "
            f"{counted(len(values), 'value')} of several numbers each; pass one tensor "
            "(torch.stack)"
        )
    plain = tree_map(lambda leaf: leaf.item() if isinstance(leaf, Tensor) else leaf, values)
    try:
        return np.asarray(plain)
    except ValueError as error:
        raise EvalkitError(
            "expected as many numbers in every target, found rows of different lengths; pad them "
            "(with -100 where a label does not count)"
        ) from error


def _own(value: Tensor) -> Tensor:
    """Return a tensor apart from the graph and the gradients of the caller's."""
    # Made under inference mode, it has no version and cannot be saved for a backward.
    return value.detach().clone() if value.is_inference() else value.detach()


def refuse_unusual(value: Tensor, what: str) -> None:
    """Refuse a tensor that has no rows to take samples from.

    Args:
        value: any tensor.
        what: the sentence calls it, in the plural.

    Raises:
        EvalkitError: it is nested or sparse, or has no values.
    """
    if value.is_nested:
        raise EvalkitError(
            f"expected {what} as dense tensors, found a nested one; pass "
            "torch.nested.to_padded_tensor(...), with a mask or labels of -100 where it is padded"
        )
    if value.layout != torch.strided:
        raise EvalkitError(
            f"expected {what} as dense tensors, found a {str(value.layout)[len('torch.') :]} one; "
            "pass .to_dense(), or keep a table that all samples share as a buffer of the model"
        )
    if value.is_meta:
        raise EvalkitError(
            f"expected {what} with values, found a tensor on the meta device; pass the data"
        )


def as_tensor(value: Any) -> Any:
    """Return an array, or a table of numbers, as a tensor, and anything else as it is.

    Raises:
        EvalkitError: it holds something else than numbers, or hides some of them.
    """
    if isinstance(value, Tensor) or not hasattr(value, "__array__") or np.isscalar(value):
        return value
    if np.ma.is_masked(value):
        raise EvalkitError(
            "expected an array of numbers, found one with masked entries; fill them "
            "(array.filled(...)), with -100 for a label that does not count"
        )
    array = np.asarray(value)
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError) as error:
        raise EvalkitError(
            f"expected an array of numbers, found one of {array.dtype} ({reason(error)}); turn it "
            "into numbers"
        ) from error


def check_batch(inputs: Inputs, targets: Tensor) -> int:
    """Return N, the first axis of the targets and of an input, if there is only one.

    Several may describe samples of several lengths, as bags one after the other with their offsets
    do, or the nodes of graphs with the graph of each: the logits then tell whether they fit.

    Raises:
        EvalkitError: the input does not have as many samples as the targets.
    """
    sizes = [len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()]
    if len(targets) not in sizes and len(sizes) < 2:
        raise EvalkitError(
            f"expected inputs with {counted(len(targets), 'sample')} on axis 0, as the targets "
            f"have, found {sizes or 'no tensor'}; pass inputs and targets of the same batch"
        )
    return len(targets)
