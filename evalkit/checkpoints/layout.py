"""The state dict in what a file holds: which key it lies under, decided by a rule that is told.

A file is a state dict, or a dict with one under a key. Weights that training optimises are taken;
averages of them (``ema``, ``swa``, ...) only where there are no others, or on demand. Several
state dicts that the rule does not tell apart are refused.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evalkit.checkpoints.asides import StandIn
from evalkit.errors import EvalkitError, shortened
from evalkit.registry import suggest

KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "model_state",
    "net_state_dict",
    "model_weights",
    "weights",
    "params",
)
"""Keys under which a file keeps the state dict of its model."""
EXTRA_STATE = "_extra_state"
"""The end of the names under which modules keep something beside their tensors."""

_AVERAGED = re.compile(
    r"(?:^|[^a-z])(?:ema|swa|averaged?|avg|shadow|teacher|target|momentum)(?![a-z])"
)
_DEPTH = 3


@dataclass(frozen=True)
class StateDict:
    """The state dict of a file.

    Args:
        tensors: dense, on the CPU, by name.
        extra: what modules keep beside their tensors, by a name that ends in ``_extra_state``.
        notes: sentences for the user: what was taken where the file leaves a choice.
    """

    tensors: dict[str, Tensor]
    extra: dict[str, Any]
    notes: tuple[str, ...] = ()


def is_averaged(name: str) -> bool:
    """Return whether a name says that weights are a moving average of others."""
    return _AVERAGED.search(name.lower()) is not None


def state_dict_in(content: Any, path: Path, key: str | None = None) -> StateDict:
    """Return the state dict in what a file holds.

    Args:
        content: what was read.
        path: the file, for sentences.
        key: where to look: a key of the file, keys joined by dots, or the beginning of the names of
            the tensors; None goes by the rule of this module.

    Raises:
        EvalkitError: there is none, several, or nothing under ``key``.
    """
    notes: list[str] = []
    if key is None:
        return _as_state_dict(_chosen(content, path, notes, _DEPTH), path, notes)
    inner: Any = content
    for part in [key] if isinstance(content, Mapping) and key in content else key.split("."):
        inner = inner.get(part) if isinstance(inner, Mapping) else None
    if isinstance(inner, Mapping):
        return _as_state_dict(_chosen(inner, path, notes, _DEPTH), path, notes)
    whole = content
    with contextlib.suppress(EvalkitError):  # several state dicts: then the names are theirs
        whole = _chosen(content, path, notes, _DEPTH)
    prefix = key.rstrip(".") + "."
    if isinstance(whole, Mapping):
        named = {str(k)[len(prefix) :]: v for k, v in whole.items() if str(k).startswith(prefix)}
        if named:
            return _as_state_dict(named, path, notes)
    known = [str(name) for name in content] if isinstance(content, Mapping) else []
    starts = [name.split(".")[0] for name in whole] if isinstance(whole, Mapping) else []
    options = list(dict.fromkeys([*known, *map(str, starts)]))
    raise EvalkitError(
        f"expected weights under '{key}' in '{path}', found none; {suggest(key, options)}"
    )


def _chosen(content: Any, path: Path, notes: list[str], depth: int) -> Any:
    """Return the part of a file's content that should be the state dict."""
    if not isinstance(content, Mapping) or not content or _is_state_dict(content) or not depth:
        return content
    copies = [key for key, value in content.items() if _is_state_dict(value)]
    known = [key for key in copies if key in KEYS]
    plain = known or [key for key in copies if not is_averaged(str(key))]
    if not known:
        deeper = [key for key in KEYS if isinstance(content.get(key), Mapping)]
        if deeper:
            return _chosen(content[deeper[0]], path, notes, depth - 1)
    candidates = plain or copies
    if len(candidates) > 1 and not all(
        _same(content[candidates[0]], content[key]) for key in candidates[1:]
    ):
        raise EvalkitError(
            f"expected one state dict in '{path}', found {_quoted(candidates)}; pass the `key` "
            "of the one to score"
        )
    if not candidates:
        return content
    taken = candidates[0]
    left = [key for key in copies if key not in candidates]
    if left:
        notes.append(
            f"of the weights in '{path.name}' those under '{taken}' are scored, not those under "
            f"{_quoted(left)} (another key takes others)"
        )
    elif is_averaged(str(taken)):
        notes.append(f"the weights in '{path.name}' are averages, under '{taken}'")
    return content[taken]


def _as_state_dict(content: Any, path: Path, notes: list[str]) -> StateDict:
    """Return a state dict, its names and tensors checked."""
    if not isinstance(content, Mapping) or not content:
        found = "an empty dict" if isinstance(content, Mapping) else type(content).__name__
        raise EvalkitError(
            f"expected a state dict in '{path}', found {found}; save model.state_dict()"
        )
    extra = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and _is_extra(name) and not isinstance(value, Tensor)
    }
    tensors = {name: value for name, value in content.items() if name not in extra}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not _is_dense(tensor):
            raise EvalkitError(
                f"expected names and dense tensors in '{path}', or a state dict under "
                f"{_quoted(KEYS)}, found {_kind(tensor)} under {shortened(ascii(name))}; save "
                "model.state_dict(), or pass the `key` of the state dict"
            )
    return StateDict(tensors, extra, tuple(notes))


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) for name in value)
        and any(isinstance(item, Tensor) for item in value.values())
        and all(isinstance(item, Tensor) or _is_extra(name) for name, item in value.items())
    )


def _is_extra(name: str) -> bool:
    return name.rsplit(".", 1)[-1] == EXTRA_STATE


def _is_dense(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and not value.is_nested
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _kind(value: Any) -> str:
    if isinstance(value, StandIn):
        return "an object"
    return "a tensor that is not dense" if isinstance(value, Tensor) else type(value).__name__


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two state dicts hold the same values under the same names."""
    return one.keys() == other.keys() and all(
        _is_dense(value)
        and _is_dense(other[name])
        and value.dtype == other[name].dtype
        and torch.equal(value, other[name])
        for name, value in one.items()
    )


def _quoted(keys: Any) -> str:
    return ", ".join(f"'{key}'" for key in keys)
