"""The model of a training: its checkpoints, and what they do not hold of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from evalkit.checkpoints.adapter_weights import is_adapted, save_adapter
from evalkit.checkpoints.tensors import write_tensor_file
from evalkit.storage.files import PART, unwritable


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
