"""A checkpoint of a training: the model, and beside it the state from which training goes on.

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
import os
import shutil
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.checkpoints.adapter_weights import is_adapted, save_adapter
from evalkit.checkpoints.manifest import OPTIMIZER_SUFFIX
from evalkit.checkpoints.tensors import write_tensor_file
from evalkit.errors import EvalkitError
from evalkit.storage.files import PART, check_regular, unwritable, write_atomically

_PLAIN = (
    Tensor,
    nn.Parameter,
    str,
    bytes,
    int,
    float,
    bool,
    type(None),
    torch.dtype,
    torch.device,
    torch.Size,
)
_NEEDED = ("optimizer", "settings", "names", "state_dict", "scheduler", "step", "order", "random")


def write_model(model: nn.Module, folder: Path, name: str) -> Path:
    """Write a model, of one with an adapter the adapter alone, in the form of its library.

    Args:
        model: to write.
        folder: of the training.
        name: of the checkpoint.

    Returns:
        The file, or the folder of an adapter, which is there whole or not at all.
    """
    if not is_adapted(model):
        path = folder / f"{name}.safetensors"
        write_tensor_file(path, model.state_dict())
        return path
    path = folder / name
    temporary = folder / f".{name}.{os.getpid()}{PART}"
    try:
        save_adapter(model, temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        shutil.rmtree(path, ignore_errors=True)  # that of a training that was stopped here
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def write_state(folder: Path, name: str, state: Mapping[str, Any]) -> Path:
    """Write the state of a training beside its checkpoint; a reader never sees half a file.

    Args:
        folder: of the training.
        name: of the checkpoint.
        state: what the head of this module lists.

    Raises:
        EvalkitError: the optimizer keeps something that would not be read again.
    """
    found = _foreign(state)
    if found is not None:
        raise EvalkitError(
            f"expected tensors and plain values in the state of the optimizer "
            f"'{state['optimizer']}', found {found}, which is not read again without code; "
            "convert it in that optimizer"
        )
    path = folder / f"{name}{OPTIMIZER_SUFFIX}"
    content = io.BytesIO()
    torch.save(dict(state), content)
    write_atomically(path, content.getvalue())
    return path


def _foreign(value: Any) -> str | None:
    """Return the name of the type in a state that torch does not read without code, if any."""
    kind = type(value)
    if kind in _PLAIN:
        return None
    if kind in (dict, OrderedDict, Counter):
        parts: Iterable[Any] = (*value, *value.values())
    elif kind in (list, tuple, set):
        parts = value
    else:
        return f"{kind.__module__}.{kind.__qualname__}"
    return next((found for found in map(_foreign, parts) if found is not None), None)


def read_state(path: Path) -> dict[str, Any]:
    """Return the state of a training beside a checkpoint, on the CPU; no code of it is run.

    Raises:
        EvalkitError: there is no such file, or it is not one that a training wrote.
    """
    advice = "copy the file again, or train again into a new folder"
    check_regular(path, advice)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise EvalkitError(
            f"expected the state of a training at '{path}', found none; {advice}"
        ) from error
    except Exception as error:  # damaged bytes fail in many ways; all mean the same
        raise EvalkitError(
            f"expected the state of a training in '{path}', found that it is truncated, altered or "
            f"of another format; {advice}"
        ) from error
    missing = [key for key in _NEEDED if not isinstance(state, dict) or key not in state]
    if missing:
        raise EvalkitError(
            f"expected the state of a training in '{path}', found one without "
            f"{', '.join(missing)}; {advice}"
        )
    return dict(state)


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Return the names of the parameters of each group of an optimizer, in their order."""
    names = {id(value): name for name, value in model.named_parameters()}
    return [
        [names.get(id(value), "") for value in group["params"]] for group in optimizer.param_groups
    ]


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the buffers that a checkpoint of the model does not hold, by name."""
    held = set() if is_adapted(model) else set(model.state_dict())
    return {
        name: buffer.detach().clone() for name, buffer in model.named_buffers() if name not in held
    }


def changed_buffers(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the buffers that are not as they were."""
    return {
        name: value
        for name, value in now.items()
        if name not in before or not torch.equal(before[name], value)
    }
