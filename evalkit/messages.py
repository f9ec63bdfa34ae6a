"""Values that are made of tensors, as bytes that processes send each other.

A value is taken apart into its *frame*, which holds the places of its tensors and is pickled, and
the tensors, whose bytes go over as they are. A :class:`Message` is both as one run of bytes.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 16
"""Bytes to which every tensor begins in what is sent, so that any dtype can be read in place."""

Form = tuple[torch.dtype, tuple[int, ...]]
"""The dtype and the shape of a tensor."""


@dataclass(frozen=True, eq=False)
class Message:
    """A value as one run of bytes: its frame with the forms of its tensors, then the tensors.

    Attributes:
        frame: both of the former, pickled.
        tensors: contiguous.
    """

    frame: bytes
    tensors: Sequence[Tensor]

    @classmethod
    def of(cls, value: Any) -> Message:
        """Return the message of a value."""
        frame, tensors = taken_apart(value)
        return cls(pickle.dumps((frame, forms_of(tensors))), tensors)

    @property
    def lengths(self) -> tuple[int, int]:
        """The bytes of the frame, and of all."""
        return len(self.frame), _up(len(self.frame)) + bytes_of(forms_of(self.tensors))

    def write(self, place: Tensor) -> None:
        """Write it to where some bytes begin."""
        place[: len(self.frame)] = torch.frombuffer(bytearray(self.frame), dtype=torch.uint8)
        write_tensors(self.tensors, place[_up(len(self.frame)) :])


def read(raw: Tensor, frame: int, device: torch.device) -> Any:
    """Return the value of a message.

    Args:
        raw: where its bytes begin.
        frame: the bytes of its frame.
        device: of the tensors.
    """
    held, forms = pickle.loads(raw[:frame].cpu().numpy().tobytes())
    return put_together(held, cut(raw[_up(frame) :], forms, device))


def forms_of(tensors: Sequence[Tensor]) -> list[Form]:
    """Return the forms of tensors."""
    return [(one.dtype, tuple(one.shape)) for one in tensors]


def bytes_of(forms: Sequence[Form]) -> int:
    """Return how many bytes tensors of some forms take where they are sent together."""
    return sum(_aligned(form) for form in forms)


def write_tensors(tensors: Sequence[Tensor], place: Tensor) -> None:
    """Write the bytes of tensors to where some bytes begin."""
    for start, one in zip(_starts(forms_of(tensors)), tensors, strict=True):
        raw = one.view(-1).view(torch.uint8)
        place[start : start + len(raw)] = raw


def cut(raw: Tensor, forms: Sequence[Form], device: torch.device) -> list[Tensor]:
    """Return the tensors whose bytes begin somewhere."""
    raw, parts = raw.to(device), []
    for start, (dtype, shape) in zip(_starts(forms), forms, strict=True):
        size = dtype.itemsize * torch.Size(shape).numel()
        parts.append(raw[start : start + size].view(dtype).view(shape))
    return parts


def _up(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _aligned(form: Form) -> int:
    dtype, shape = form
    return _up(dtype.itemsize * torch.Size(shape).numel())


def _starts(forms: Sequence[Form]) -> list[int]:
    """Return where the bytes of each tensor begin."""
    starts, end = [], 0
    for form in forms:
        starts.append(end)
        end += _aligned(form)
    return starts


class _Apart(pickle.Pickler):
    """Keeps tensors aside."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Together(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]


def taken_apart(value: Any) -> tuple[bytes, list[Tensor]]:
    """Return what holds the tensors of a value, and them, contiguous.

    A view may hold far more than it shows, and is sent as what it shows.
    """
    file = io.BytesIO()
    pickler = _Apart(file)
    pickler.dump(value)
    return file.getvalue(), [tensor.detach().contiguous() for tensor in pickler.tensors]


def put_together(frame: bytes, tensors: Sequence[Tensor]) -> Any:
    """Return a value of what holds its tensors, and them: the inverse of :func:`taken_apart`."""
    return _Together(io.BytesIO(frame), tensors).load()
