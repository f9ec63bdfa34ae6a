"""One file of tensors: read without running code, written at once or not at all."""

from __future__ import annotations

import hashlib
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.tables import write_atomically

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES)

_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
# How torch's restricted unpickler names a function or class that it refuses.
_REFUSED = re.compile(r"(?:GLOBAL |got <class '|type <class ')([\w.]+)")
# What the pickles of state dicts refer to; anything else is code.
_PLAIN_MODULES = ("torch", "collections")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    Raises:
        EvalkitError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise EvalkitError(
            f"expected a readable file, found that '{path}' cannot be read "
            f"({error.strerror or type(error).__name__}); check the file and its permissions"
        ) from error
    return digest.hexdigest()


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint file, on the CPU.

    ``.safetensors`` holds nothing but tensors. The other formats are pickles: they are read by
    torch's restricted unpickler, which builds tensors and plain containers and runs nothing.

    Args:
        path: a file with one of :data:`SUFFIXES`. A pickle holds a state dict, or a dict with one
            under ``state_dict``, ``model_state_dict`` or ``model``.

    Raises:
        EvalkitError: the file is truncated or altered, needs code to load, or holds no state dict.
    """
    read = _read_safetensors if path.suffix == SAFETENSORS_SUFFIX else _read_pickle
    return _state_dict(read(path), path)


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except Exception as error:  # a damaged header fails in many ways; all mean the same
        raise _unreadable(path, "safetensors") from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch would warn of is refused in a sentence
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail in many ways; only code objects differ
        needed = _needed_code(path, error)
        if needed is None:
            raise _unreadable(path, "PyTorch") from error
        # torch's own text proposes to load the file with its code: it is not passed on.
        raise EvalkitError(
            f"expected only tensors in '{path}', found code objects ({needed}), which are never "
            "loaded; save model.state_dict() or a safetensors file instead"
        ) from None


def _needed_code(path: Path, error: Exception) -> str | None:
    """Return what a refused pickle asks to run, None where that is not why it was refused."""
    if "TorchScript" in str(error):
        return "a TorchScript program"
    if not isinstance(error, pickle.UnpicklingError):
        return None
    refused = _REFUSED.search(str(error))
    return refused.group(1) if refused is not None else _foreign_global(path)


def _foreign_global(path: Path) -> str | None:
    """Return the first function or class that a plain pickle refers to beyond state dicts.

    The instructions are listed, not executed. Newer protocols write such a name as two strings.
    """
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for instruction, argument, _ in pickletools.genops(file):
                name = None
                if instruction.name == "GLOBAL":
                    name = str(argument).replace(" ", ".")
                elif instruction.name == "STACK_GLOBAL":
                    name = ".".join(strings[-2:])
                elif isinstance(argument, str):
                    strings.append(argument)
                if name is not None and name.split(".")[0] not in _PLAIN_MODULES:
                    return name
    except (ValueError, OSError):
        return None  # not a pickle to its end: damaged rather than refused
    return None


def _unreadable(path: Path, kind: str) -> EvalkitError:
    return EvalkitError(
        f"expected a complete {kind} file, found that '{path}' is truncated, altered or of "
        "another format; copy or save it again"
    )


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in what a file holds."""
    if isinstance(content, Mapping):
        wrapped = [content[key] for key in _STATE_DICT_KEYS if key in content]
        content = next((value for value in wrapped if isinstance(value, Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        found = "an empty dict" if isinstance(content, Mapping) else type(content).__name__
        raise EvalkitError(
            f"expected a state dict in '{path}', found {found}; save model.state_dict()"
        )
    for name, tensor in content.items():
        if not _is_dense(tensor) or not isinstance(name, str):
            found = "a tensor that is not dense" if isinstance(tensor, Tensor) else _type(tensor)
            raise EvalkitError(
                f"expected names and dense tensors in '{path}', or a state dict under "
                f"{', '.join(repr(key) for key in _STATE_DICT_KEYS)}, found {found} under "
                f"{name!r}; save model.state_dict()"
            )
    return dict(content)


def _is_dense(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _type(value: Any) -> str:
    return type(value).__name__


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors; a reader never sees half a file.

    Args:
        path: the file to write; an existing one is replaced.
        tensors: tensors that share memory are written once each.

    Raises:
        EvalkitError: the file cannot be written.
    """
    # The format refuses shared memory, as tied weights have it.
    copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    copies = {name: tensor.contiguous() for name, tensor in copies.items()}
    write_atomically(path, safetensors.torch.save(copies, metadata={"format": "pt"}))
