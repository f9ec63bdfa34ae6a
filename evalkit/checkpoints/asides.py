"""Objects beside the weights in a pickle: which are passed over, and which are refused.

Training scripts save their arguments, numbers of numpy or paths beside the state dict. Such an
object is replaced by an empty stand-in, so that nothing of its class is imported or called; torch's
restricted unpickler is told about the stand-ins only. Any other class or function is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch

_TORCH = ("torch", "_codecs.encode", "collections.OrderedDict", "collections.Counter")
_TORCH_BUILTINS = ("bytearray", "set", "complex")
_MODULES = ("numpy", "argparse", "pathlib", "datetime", "decimal", "fractions", "omegaconf")
_NAMES = ("types.SimpleNamespace", "typing.Any", "uuid.UUID", "collections.defaultdict")
_BUILTINS = ("int", "float", "str", "bool", "list", "dict", "tuple", "frozenset", "slice", "range")
_PYTHON_2 = {"long": "int", "unicode": "str", "xrange": "range"}
_SHARDED = "torch.distributed"


class StandIn:
    """What an object beside the weights is read as: nothing of it is kept."""

    def __new__(cls, *_: Any) -> StandIn:
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Pass over what the object held."""


def foreign_name(names: Iterable[str]) -> str | None:
    """Return the first function or class that is neither torch's own nor passed over."""
    return next((name for name in names if not _is_torch(name) and not _is_aside(name)), None)


def is_sharded_tensor(names: Iterable[str]) -> bool:
    """Return whether a file holds tensors of which every process saved its own part."""
    return any(name.startswith(_SHARDED) for name in names)


def stand_ins(names: Iterable[str]) -> AbstractContextManager[None]:
    """Return a context in which torch reads the objects with these names as stand-ins."""
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_dict if name == "collections.defaultdict" else StandIn, _current(name))
        for name in names
        if _is_aside(name) and not _is_torch(name)
    ]
    context: AbstractContextManager[None] = torch.serialization.safe_globals(allowed)
    return context


def _dict(*_: Any) -> dict[Any, Any]:
    return {}


def _current(name: str) -> str:
    """Return a name as Python 3 has it."""
    module, _, last = name.rpartition(".")
    if module == "__builtin__":  # torch.save writes the names of Python 2
        return f"builtins.{_PYTHON_2.get(last, last)}"
    return name


def _is_torch(name: str) -> bool:
    name = _current(name)
    builtin = name.removeprefix("builtins.") in _TORCH_BUILTINS and name.startswith("builtins.")
    return builtin or any(name == known or name.startswith(f"{known}.") for known in _TORCH)


def _is_aside(name: str) -> bool:
    name = _current(name)
    if name.startswith("builtins."):
        return name.removeprefix("builtins.") in _BUILTINS
    return name in _NAMES or name.split(".")[0] in _MODULES
