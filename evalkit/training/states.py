"""What lies beside a checkpoint: the optimizer, and the state from which its training goes on.

``step-000092.safetensors``, or the folder ``step-000092`` of an adapter, has beside it the file
``step-000092.optimizer.pt``, which ``torch.load(..., weights_only=True)`` reads: a dict with

- ``optimizer``: the registered name, ``settings``: what its builder was given by name, and
  ``names``: the names of the parameters of each of its groups, in their order;
- ``state_dict``: of the optimizer, and ``scheduler``: that of the schedule of its learning rate;
- ``step``: optimizer steps taken; ``order``: the state of the generator of the order of samples,
  ``random``: of the ambient generators, both before the model was evaluated at this checkpoint;
- ``buffers``: those of the model that the checkpoint does not hold and that training changed.
"""

from __future__ import annotations

import io
import sys
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.checkpoints.manifest import OPTIMIZER_SUFFIX
from evalkit.checkpoints.tensors import read_pickle
from evalkit.errors import EvalkitError, reason
from evalkit.storage.files import check_regular, write_atomically

_PLAIN = (
    Tensor,
    nn.Parameter,
    bytes,
    int,
    float,
    bool,
    type(None),
    torch.dtype,
    torch.device,
    torch.Size,
)
_NEEDED = (
    "optimizer",
    "settings",
    "names",
    "state_dict",
    "scheduler",
    "step",
    "order",
    "random",
    "buffers",
)


def write_state(folder: Path, name: str, state: Mapping[str, Any]) -> Path:
    """Write the state of a training beside its checkpoint; a reader never sees half a file.

    Args:
        folder: of the training.
        name: of the checkpoint.
        state: what the head of this module lists.

    Raises:
        EvalkitError: the optimizer keeps something that would not be read again.
    """
    path = folder / f"{name}{OPTIMIZER_SUFFIX}"
    content = io.BytesIO()
    try:
        torch.save(_plain(dict(state)), content)
    except TypeError as error:
        raise EvalkitError(
            f"expected tensors and plain values in the state of the optimizer "
            f"'{state['optimizer']}', found {error}, which is not read again without code; convert "
            "it in that optimizer"
        ) from error
    write_atomically(path, content.getvalue())
    return path


def _plain(value: Any) -> Any:
    """Return a value built anew, so that equal ones are written as the same bytes.

    A pickle refers to texts and containers that it has seen by identity, which is another once a
    state was read.

    Raises:
        TypeError: with the name of a type that torch does not read without code.
    """
    kind = type(value)
    if kind is str:
        return sys.intern(value)
    if kind in (dict, OrderedDict, Counter):
        return kind({_plain(key): _plain(item) for key, item in value.items()})
    if kind in (list, tuple, set):
        return kind(map(_plain, value))
    if kind not in _PLAIN:
        raise TypeError(f"{kind.__module__}.{kind.__qualname__}")
    return value


def read_state(path: Path) -> dict[str, Any]:
    """Return the state of a training beside a checkpoint, on the CPU; no code of it is run.

    Raises:
        EvalkitError: there is no such file, or it is not one that a training wrote.
    """
    advice = "copy the file again, or train again into a new folder"
    check_regular(path, advice)
    if not path.exists():
        raise EvalkitError(f"expected the state of a training at '{path}', found none; {advice}")
    state = read_pickle(path)
    missing = [key for key in _NEEDED if not isinstance(state, dict) or key not in state]
    if missing:
        raise EvalkitError(
            f"expected the state of a training in '{path}', found one without "
            f"{', '.join(missing)}; {advice}"
        )
    return dict(state)


def take_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Any], path: Path
) -> None:
    """Let a new optimizer take the state of a saved one.

    Args:
        optimizer: built alike.
        model: whose parameters it has.
        state: as :func:`read_state` returns it.
        path: where it was read, for sentences.

    Raises:
        EvalkitError: it is the state of another optimizer or model.
    """
    if state["names"] != parameter_names(model, optimizer):
        raise unfit(path, "that of other parameters")
    try:
        optimizer.load_state_dict(state["state_dict"])
        taken = _same(state["state_dict"]["state"], optimizer.state_dict()["state"])
    except Exception as error:  # altered states fail in many ways; all mean the same
        raise unfit(path, reason(error)) from error
    if not taken:
        raise EvalkitError(
            f"expected the optimizer '{state['optimizer']}' to take its state in '{path}' as it "
            "was saved, found that it rounds it; train without interruption, or in one precision"
        )


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Return the names of the parameters of each group of an optimizer, in their order."""
    names = {id(value): name for name, value in model.named_parameters()}
    return [
        [names.get(id(value), "") for value in group["params"]] for group in optimizer.param_groups
    ]


def unfit(path: Path, found: str) -> EvalkitError:
    """Return the error of a state that is not that of the checkpoint which it lies beside."""
    return EvalkitError(
        f"expected the state of the training at its checkpoint in '{path}', found {found}; copy "
        "the whole folder again, or train again into a new folder"
    )


def _same(saved: Any, now: Any) -> bool:
    """Return whether two nestings of tensors and plain values are alike to the bit."""
    if isinstance(saved, Tensor) and isinstance(now, Tensor):
        return saved.dtype == now.dtype and torch.equal(saved, now.to(saved.device))
    if isinstance(saved, dict) and isinstance(now, dict):
        return saved.keys() == now.keys() and all(_same(saved[key], now[key]) for key in saved)
    if isinstance(saved, list | tuple) and isinstance(now, list | tuple):
        return len(saved) == len(now) and all(map(_same, saved, now))
    return bool(saved == now)
