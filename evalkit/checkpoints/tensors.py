"""One file of tensors: read without running code, written at once or not at all."""

from __future__ import annotations

import hashlib
import pickle
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from evalkit.checkpoints.asides import foreign_name, is_sharded_tensor, stand_ins
from evalkit.checkpoints.file_names import PICKLE_SUFFIXES, SAFETENSORS_SUFFIX, SUFFIXES
from evalkit.checkpoints.layout import StateDict, state_dict_in
from evalkit.checkpoints.outline import outline_of
from evalkit.errors import EvalkitError, shortened
from evalkit.storage.files import write_atomically

__all__ = [
    "PICKLE_SUFFIXES",
    "SAFETENSORS_SUFFIX",
    "SUFFIXES",
    "file_hash",
    "read_pickle",
    "read_state_dict",
    "read_tensor_file",
    "write_tensor_file",
]

_HASHES: dict[tuple[int, ...], str] = {}
"""Of the files that this process has hashed."""
_TICK_NS = 2_000_000_000
"""Nanoseconds, more than the clock of any file system is coarse."""

# How torch's restricted unpickler names a function or class that it refuses.
_REFUSED = re.compile(r"(?:GLOBAL |got <class '|type <class ')([\w.]+)")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    A file is read once a process as long as the system says that it is the same: a study hashes
    each checkpoint when it opens, verifies and loads it, and a hash takes most of the time of each.

    Raises:
        EvalkitError: the file cannot be read.
    """
    try:
        before, started = _identity(path), time.time_ns()
        if before in _HASHES:
            return _HASHES[before]
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        # Writes within one tick of the system's clock leave the same times behind.
        if _identity(path) == before and max(before[-2:]) + _TICK_NS < started:
            _HASHES[before] = digest.hexdigest()
    except OSError as error:
        raise EvalkitError(
            f"expected a readable file, found that '{path}' cannot be read "
            f"({error.strerror or type(error).__name__}); check the file and its permissions"
        ) from error
    return digest.hexdigest()


def _identity(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written to, times last."""
    told = path.stat()
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns


def read_tensor_file(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint file, on the CPU; see :func:`read_state_dict`."""
    return read_state_dict(path, key).tensors


def read_state_dict(path: Path, key: str | None = None) -> StateDict:
    """Return the state dict in a checkpoint file, on the CPU.

    ``.safetensors`` holds nothing but tensors. The other formats are pickles: what they declare is
    compared with the size of the file first, then torch's restricted unpickler builds tensors and
    plain containers, and nothing is run; see :mod:`evalkit.checkpoints.asides`.

    Args:
        path: a file with one of :data:`SUFFIXES`.
        key: where in the file; see :func:`evalkit.checkpoints.layout.state_dict_in`.

    Raises:
        EvalkitError: the file is truncated or altered, declares more than it holds, needs code to
            load, or holds no state dict.
    """
    read = _read_safetensors if path.name.endswith(SAFETENSORS_SUFFIX) else read_pickle
    return state_dict_in(read(path), path, key)


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except Exception as error:  # a damaged header fails in many ways; all mean the same
        raise _unreadable(path, "safetensors") from error


def read_pickle(path: Path) -> Any:
    """Return what a file of ``torch.save`` holds, on the CPU, without running code of it.

    Raises:
        EvalkitError: as :func:`read_state_dict`, but for what the file holds.
    """
    try:
        names = outline_of(path).names
    except EvalkitError:
        raise
    except (ValueError, OSError) as error:
        raise _unreadable(path, "PyTorch") from error
    if is_sharded_tensor(names):
        raise EvalkitError(
            f"expected whole tensors in '{path}', found parts that several processes saved "
            "(torch.distributed); gather them with "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict and full_state_dict=True"
        )
    foreign = foreign_name(names)
    if foreign is not None:
        raise _code(path, foreign)
    try:
        with warnings.catch_warnings(), stand_ins(names):
            warnings.simplefilter("ignore")  # what torch would warn of is refused in a sentence
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail in many ways; only code objects differ
        needed = _needed_code(error)
        # torch's own text proposes to load the file with its code: it is not passed on.
        raise (_unreadable(path, "PyTorch") if needed is None else _code(path, needed)) from None


def _needed_code(error: Exception) -> str | None:
    """Return what a refused pickle asks to run, None where that is not why it was refused."""
    if "TorchScript" in str(error):
        return "a TorchScript program"
    if not isinstance(error, pickle.UnpicklingError):
        return None
    if "torch.nested" in str(error):
        return "torch.nested"
    refused = _REFUSED.search(str(error))
    return refused.group(1) if refused is not None else None


def _code(path: Path, needed: str) -> EvalkitError:
    return EvalkitError(
        f"expected only tensors in '{path}', found code objects ({shortened(ascii(needed)[1:-1])}),"
        " which are never loaded; save model.state_dict() or a safetensors file instead"
    )


def _unreadable(path: Path, kind: str) -> EvalkitError:
    return EvalkitError(
        f"expected a complete {kind} file, found that '{path}' is truncated, altered or of "
        "another format; copy or save it again"
    )


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
