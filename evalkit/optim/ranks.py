"""The processes of a data-parallel training, each with its own part of a batch.

Every process calls the same functions in the same order (``torch.distributed``); without a process
group there is one, to which all of them are trivial.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_ALIGNED = 16
"""Bytes to which every tensor begins in what is sent, so that any dtype can be read in place."""


class Ranks:
    """The processes of a group.

    Attributes:
        size: how many there are.
        rank: which of them this is.

    Args:
        group: of ``torch.distributed``; None for the default one where there is one.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        together = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size(group) if together else 1
        self.rank = dist.get_rank(group) if together else 0

    def objects(self, value: T) -> list[T]:
        """Return the small values of all processes, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def gathered(self, value: T, device: torch.device) -> list[T]:
        """Return the values of all processes, by rank: anything that is made of tensors.

        What holds the tensors is sent by itself, their numbers all at once.

        Args:
            value: of this process; its own is returned as it is.
            device: of its tensors, and of those that come.
        """
        if self.size == 1:
            return [value]
        frame, tensors = _taken_apart(value)
        # A view may hold far more than it shows.
        flat = [tensor.detach().contiguous() for tensor in tensors]
        frames = self.objects((frame, [(one.dtype, tuple(one.shape)) for one in flat]))
        places = [_places(shapes) for _, shapes in frames]
        sent = torch.zeros(max(end for _, end in places), dtype=torch.uint8, device=device)
        for start, one in zip(places[self.rank][0], flat, strict=True):
            raw = one.view(-1).view(torch.uint8)
            sent[start : start + len(raw)] = raw
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent, group=self._group)
        found: list[T] = []
        for rank, ((frame, shapes), (starts, _), raw) in enumerate(
            zip(frames, places, received, strict=True)
        ):
            if rank == self.rank:
                found.append(value)
                continue
            parts = []
            for start, (dtype, shape) in zip(starts, shapes, strict=True):
                size = dtype.itemsize * torch.Size(shape).numel()
                parts.append(raw[start : start + size].view(dtype).view(shape))
            found.append(_put_together(frame, parts))
        return found

    def sum(self, values: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.size > 1:
            for value in values:
                dist.all_reduce(value, group=self._group)


def _places(shapes: Sequence[tuple[torch.dtype, tuple[int, ...]]]) -> tuple[list[int], int]:
    """Return where the bytes of each tensor begin, and where those of all end."""
    starts, end = [], 0
    for dtype, shape in shapes:
        starts.append(end)
        end += -(-dtype.itemsize * torch.Size(shape).numel() // _ALIGNED) * _ALIGNED
    return starts, end


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


def _taken_apart(value: Any) -> tuple[bytes, list[Tensor]]:
    """Return what holds the tensors of a value, and them."""
    file = io.BytesIO()
    pickler = _Apart(file)
    pickler.dump(value)
    return file.getvalue(), pickler.tensors


def _put_together(frame: bytes, tensors: Sequence[Tensor]) -> Any:
    return _Together(io.BytesIO(frame), tensors).load()
