"""A device ``other``: the CPU computes for it, and its tensors may not meet those of the CPU.

It shows without a card what a card would refuse: a tensor made on the CPU beside one of the
model's device. It counts how often the host asks for numbers of the device, where it would wait for
a card. What torch computes on a device by kernels of its own, such as recurrent cells, is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from evalkit.work import TYPICAL, agreed_rates

NAME = "other"
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

_aten = torch.ops.aten
_INDEXED = {
    _aten.index.Tensor,
    _aten._unsafe_index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
"""What takes indices of the CPU on a card, too."""
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
_ANSWERS = {_aten._local_scalar_dense.default, _aten.equal.default}
"""What returns a number to the host."""


class Mixed(RuntimeError):
    """A tensor of the CPU met one of the device."""


class Host:
    """What the host has asked the device for.

    Attributes:
        waits: how often it asked for numbers.
    """

    waits = 0


class Held(Tensor):
    """A tensor of the device, around the tensor of the CPU that has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Held:
        """Return it with the shape of what it holds."""
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        """Return the numbers, for which the host waits."""
        Host.waits += 1
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"Held({self.held!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Hands on what makes tensors of the device from none."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what the CPU makes of the held tensors, held again."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = any(isinstance(one, Held) for one in tensors)
    asked = kwargs.get("device")
    to_other = here if asked is None else torch.device(asked).type == NAME
    if here and func not in _INDEXED | _COPIES:
        strange = [one for one in tensors if not isinstance(one, Held) and one.dim()]
        if strange:
            shapes = ", ".join(str(tuple(one.shape)) for one in strange)
            raise Mixed(f"{func}: expected all tensors on one device, found {shapes} on the CPU")
    if func in _ANSWERS or (func in _COPIES and here and not _stays(func, args, to_other)):
        Host.waits += here
    if func is _aten.copy_.default:
        _held(args[0]).copy_(_held(args[1]))
        return args[0]
    plain = tree_map(_held, kwargs)
    if asked is not None:
        plain["device"] = torch.device("cpu")
    found = func(*tree_map(_held, args), **plain)
    if not to_other or func in _ANSWERS:
        return found
    made = tree_map(lambda leaf: Held(leaf) if isinstance(leaf, Tensor) else leaf, found)
    return return_and_correct_aliasing(func, args, kwargs, made)


def _stays(func: Any, args: Any, to_other: bool) -> bool:
    """Whether what is copied is on the device before and after, or comes to it."""
    return isinstance(args[0], Held) if func is _aten.copy_.default else to_other


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Held) else value


_CpuGenerator = torch.Generator


class _Generator(_CpuGenerator):
    """A generator of either device, whose numbers are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls)

    def __init__(self, device: Any = "cpu") -> None:
        pass


_SET_UP: list[str] = []


def _set_up() -> None:
    """Tell torch of the device, once in a process."""
    if not _SET_UP:
        backend_registration._setup_privateuseone_for_python_backend(NAME)
        _SET_UP.append(NAME)


@contextmanager
def other_device() -> Iterator[type[Host]]:
    """Let tensors be made on the device within the block, and count what the host asks for."""
    if not AVAILABLE:
        pytest.skip(f"torch {torch.__version__} has no devices that are written in Python")
    _set_up()
    lifted = torch._C._only_lift_cpu_tensors()
    # Numbers of Python become a tensor of the CPU first, whose copy the mode sees.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with pytest.MonkeyPatch.context() as patch, agreed_rates(TYPICAL), _Mode():
            patch.setattr(torch, "Generator", _Generator)
            patch.setattr(torch.accelerator, "synchronize", lambda *device: None)
            yield Host
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
