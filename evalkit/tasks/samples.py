"""Samples in the forms that users have them: tensors, arrays, data sets and loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from evalkit.counts import counted
from evalkit.errors import EvalkitError
from evalkit.evaluation.given import Inputs, array_of_numbers, refuse_unusual
from evalkit.evaluation.given import as_tensor as given_as_tensor
from evalkit.tasks.user_code import user_code

LABELS = ("labels", "label")
"""Where a data set of dicts has its targets."""

Collate = Callable[[Inputs, Tensor], tuple[Inputs, Tensor]]
"""Maps the inputs and targets of a batch to others, sample axis first."""


@dataclass(frozen=True)
class Samples:
    """Inputs and targets of N samples, each tensor with the samples along its first axis.

    Args:
        inputs: a tensor, or tensors in a tuple (positional arguments), a dict (keyword arguments),
            or any nesting of tuples, lists and dicts in them.
        targets: a tensor.
        collate: makes of the inputs and targets of a batch what the model and the likelihood take;
            None where they are that already.

    Raises:
        EvalkitError: something else than tensors, no samples, or different numbers of samples.
    """

    inputs: Inputs
    targets: Tensor
    collate: Collate | None = None

    def __post_init__(self) -> None:
        tensors = {**_named(self.inputs), "targets": self.targets}
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) or tensor.dim() == 0:
                raise EvalkitError(
                    f"expected {name} to be a tensor with the samples along its first axis, found "
                    f"{_kind(tensor)}; return (inputs, targets), with inputs a tensor, a tuple of "
                    "tensors or a dict of tensors"
                )
            refuse_unusual(tensor, name)
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            found = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise EvalkitError(
                f"expected as many inputs as targets, found {found}; put the samples along the "
                "first axis of every tensor"
            )
        if len(self) == 0:
            raise EvalkitError("expected at least one sample, found none; check the task's data")

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor | slice) -> tuple[Inputs, Tensor]:
        """Return the inputs and the targets of the samples at ``indices``: (n,) integers."""
        inputs: Inputs = tree_map(lambda tensor: tensor[indices], self.inputs)
        targets = self.targets[indices]
        if self.collate is None:
            return inputs, targets
        with user_code("the collate function of the task"):
            return self.collate(inputs, targets)


def _named(inputs: Any, name: str = "inputs") -> dict[str, Any]:
    """Return the values in a nesting of tuples, lists and dicts by what errors call them."""
    if isinstance(inputs, (tuple, list)) and inputs:
        parts = {f"{name}[{index}]": value for index, value in enumerate(inputs)}
    elif isinstance(inputs, dict) and inputs:
        parts = {f"{name}['{key}']": value for key, value in inputs.items()}
    else:
        return {name: inputs}
    found: dict[str, Any] = {}
    for part, value in parts.items():
        holds = any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
        found |= _named(value, part) if holds else {part: value}
    return found


def _kind(value: Any) -> str:
    return "a single number" if isinstance(value, Tensor) else type(value).__name__


@dataclass(frozen=True)
class ItemSamples:
    """Samples that a data set gives one at a time, by index.

    Args:
        items: has a length and an item for each index: (inputs, target), or a dict with the target
            under ``labels`` or ``label``.
        gather: makes a batch, of the same form, of a list of items.
        collate: as of :class:`Samples`.

    Raises:
        EvalkitError: there is no length, or no item.
    """

    items: Any
    gather: Callable[[list[Any]], Any]
    collate: Collate | None = None

    def __post_init__(self) -> None:
        try:
            length = len(self.items)
        except TypeError as error:
            raise EvalkitError(
                "expected a data set with a length and an item for each index, found a stream "
                f"({type(self.items).__name__}); give one with __len__ and __getitem__"
            ) from error
        if length == 0:
            raise EvalkitError("expected at least one sample, found none; check the task's data")

    def __len__(self) -> int:
        return len(self.items)

    def take(self, indices: Tensor | slice) -> tuple[Inputs, Tensor]:
        """Return the inputs and the targets of the samples at ``indices``: (n,) integers."""
        chosen = torch.arange(len(self))[indices].tolist()
        with user_code("the data set of the task"):
            made = self.gather([self.items[index] for index in chosen])
        inputs, targets = _parts(made)
        batch = Samples(inputs, targets, self.collate)
        if len(batch) != len(chosen):
            raise EvalkitError(
                f"expected a batch of {counted(len(chosen), 'sample')} from the data set of the "
                f"task, found {len(batch)}; return one sample for each item"
            )
        return batch.take(slice(None))


def _parts(made: Any) -> tuple[Any, Any]:
    """Return inputs and targets of a batch, or of an item."""
    if isinstance(made, Mapping):
        for name in LABELS:
            if name in made:
                rest = {key: value for key, value in made.items() if key not in LABELS}
                return tree_map(as_tensor, rest), _targets(made[name])
        found = f"a dict with {', '.join(map(repr, made))}"
    elif isinstance(made, (tuple, list)) and len(made) == 2:
        inputs = tuple(made[0]) if isinstance(made[0], list) else made[0]
        if isinstance(inputs, Mapping):
            inputs = dict(inputs)
        return tree_map(as_tensor, inputs), _targets(made[1])
    elif isinstance(made, (tuple, list)):
        found = counted(len(made), "value")
    else:
        found = type(made).__name__
    raise EvalkitError(
        "expected items (inputs, target) of the data set, or dicts with 'labels', found "
        f"{found}; give a DataLoader with a collate_fn that returns (inputs, targets)"
    )


def _targets(value: Any) -> Any:
    plain = isinstance(value, (tuple, list)) and value
    return as_tensor(array_of_numbers(value) if plain else value)


def is_item_source(value: Any) -> bool:
    """Return whether a value is a data set or a loader of torch."""
    return isinstance(value, (Dataset, DataLoader))


def as_samples(loaded: Any, what: str, collate: Collate | None) -> Samples | ItemSamples:
    """Return what a task's data function returned, or a data set in its place, as samples.

    Args:
        loaded: (inputs, targets) as tensors or arrays, a ``Dataset``, a ``DataLoader``, or another
            object with a length and items, such as a data set of Hugging Face. Of a loader, the
            data set and the ``collate_fn`` are used; batches are drawn by evalkit.
        what: how errors call it.
        collate: see :class:`Samples`.

    Raises:
        EvalkitError: it is something else.
    """
    try:
        if isinstance(loaded, DataLoader):
            standard = loaded.collate_fn is default_collate
            gather = _gather if standard else loaded.collate_fn
            return ItemSamples(_indexed(loaded.dataset), gather, collate)
        if isinstance(loaded, Dataset) or _has_items(loaded):
            return ItemSamples(_indexed(loaded), _gather, collate)
        if not isinstance(loaded, (tuple, list)) or len(loaded) != 2:
            several = isinstance(loaded, (tuple, list))
            found = counted(len(loaded), "value") if several else type(loaded).__name__
            raise EvalkitError(
                f"expected {what} to be (inputs, targets), found {found}; return a pair of "
                "tensors or arrays, a Dataset or a DataLoader"
            )
        inputs, targets = _parts(loaded)
        return Samples(inputs, targets, collate)
    except EvalkitError as error:
        text = str(error)
        raise EvalkitError(text if what in text else f"{what}: {text}") from None


def _has_items(value: Any) -> bool:
    """Return whether a value is a data set of another library."""
    plain = (tuple, list, str, bytes, Mapping, Tensor)
    has = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return has and not isinstance(value, plain) and not hasattr(value, "__array__")


def _indexed(items: Any) -> Any:
    if isinstance(items, IterableDataset):
        raise EvalkitError(
            "expected a data set with a length and an item for each index, found a stream "
            f"({type(items).__name__}); give one with __len__ and __getitem__"
        )
    return items


def _gather(items: list[Any]) -> Any:
    """Return a batch of items as a DataLoader makes it, real numbers in torch's own precision."""
    return default_collate([tree_map(_number_as_tensor, item) for item in items])


def _number_as_tensor(value: Any) -> Any:
    value = as_tensor(value)
    return torch.tensor(value) if isinstance(value, (float, np.floating)) else value


def as_tensor(value: Any) -> Any:
    """Return an array, or a table of numbers, as a tensor, and anything else as it is.

    Real numbers in double precision, which arrays have unless they are told otherwise, take the
    precision that layers have: torch's default.

    Raises:
        EvalkitError: it holds something else than numbers.
    """
    tensor = given_as_tensor(value)
    converted = isinstance(tensor, Tensor) and not isinstance(value, Tensor)
    plain = converted and tensor.dtype == torch.float64
    return tensor.to(torch.get_default_dtype()) if plain else tensor
