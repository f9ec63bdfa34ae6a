"""The processes of a group (``torch.distributed``), each with its own part of a batch.

Every process calls the same functions in the same order; without a process group there is one, to
which all of them are trivial.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_ALIGNED = 16
"""Bytes to which every tensor begins in what is sent, so that any dtype can be read in place."""

Form = tuple[torch.dtype, tuple[int, ...]]
"""The dtype and the shape of a tensor."""


class Group:
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
        frame, flat = taken_apart(value)
        frames = self.objects((frame, forms_of(flat)))
        most = max(bytes_of(forms) for _, forms in frames)
        sent = self._joined(flat, device, most)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent, group=self._group)
        return [
            value if rank == self.rank else put_together(frame, _cut(raw, forms, device))
            for rank, ((frame, forms), raw) in enumerate(zip(frames, received, strict=True))
        ]

    def sum(self, values: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.size == 1:
            return
        for value in values:
            here = value if self._direct(value.device) else value.cpu()
            dist.all_reduce(here, group=self._group)
            if here is not value:
                value.copy_(here)

    def of_first(self, value: T, device: torch.device) -> T:
        """Return the value of rank 0 in every process: anything that is made of tensors.

        Args:
            value: of rank 0, which it gets back as it is; of no account elsewhere.
            device: of the tensors that come.
        """
        if self.size == 1:
            return value
        flat: list[Tensor] = []
        said: list[Any] = [None]
        if self.rank == 0:
            frame, flat = taken_apart(value)
            said = [(frame, forms_of(flat))]
        dist.broadcast_object_list(said, src=self._global(0), group=self._group)
        frame, forms = said[0]
        if forms:
            raw = self._joined(flat, device, bytes_of(forms))
            dist.broadcast(raw, src=self._global(0), group=self._group)
            flat = flat or _cut(raw, forms, device)
        return value if self.rank == 0 else put_together(frame, flat)

    def swapped(
        self,
        sent: Mapping[int, Sequence[Tensor]],
        awaited: Mapping[int, Sequence[Form]],
        device: torch.device,
    ) -> dict[int, list[Tensor]]:
        """Return what other processes send to this one, by their rank.

        Both sides of each pair know what goes over: with nothing, nothing is sent.

        Args:
            sent: the tensors for each of them.
            awaited: the forms of those that come from each of them.
            device: of the tensors that come.
        """
        work, raws = [], {}
        for rank, tensors in sent.items():
            if tensors:
                raw = self._joined(tensors, device, bytes_of(forms_of(tensors)))
                raws[~rank] = raw  # held until it is sent
                work.append(dist.P2POp(dist.isend, raw, self._global(rank), self._group))
        for rank, forms in awaited.items():
            if forms:
                raws[rank] = self._empty(device, bytes_of(forms))
                work.append(dist.P2POp(dist.irecv, raws[rank], self._global(rank), self._group))
        if work:
            for one in dist.batch_isend_irecv(work):
                one.wait()
        return {rank: _cut(raws[rank], f, device) if f else [] for rank, f in awaited.items()}

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)

    def _direct(self, device: torch.device) -> bool:
        """Return whether the group sends memory of a device; otherwise it goes through the CPU."""
        return device.type == "cpu" or "nccl" in str(dist.get_backend_config(self._group))

    def _empty(self, device: torch.device, size: int) -> Tensor:
        place = device if self._direct(device) else torch.device("cpu")
        return torch.empty(size, dtype=torch.uint8, device=place)

    def _joined(self, tensors: Sequence[Tensor], device: torch.device, size: int) -> Tensor:
        """Return the bytes of tensors in one that can be sent; the rest of it is of no account."""
        joined = self._empty(device, size)
        for start, one in zip(_starts(forms_of(tensors)), tensors, strict=True):
            raw = one.view(-1).view(torch.uint8)
            joined[start : start + len(raw)] = raw
        return joined


def forms_of(tensors: Sequence[Tensor]) -> list[Form]:
    """Return the forms of tensors."""
    return [(one.dtype, tuple(one.shape)) for one in tensors]


def bytes_of(forms: Sequence[Form]) -> int:
    """Return how many bytes tensors of some forms take where they are sent together."""
    return sum(_aligned(form) for form in forms)


def _aligned(form: Form) -> int:
    dtype, shape = form
    return -(-dtype.itemsize * torch.Size(shape).numel() // _ALIGNED) * _ALIGNED


def _starts(forms: Sequence[Form]) -> list[int]:
    """Return where the bytes of each tensor begin."""
    starts, end = [], 0
    for form in forms:
        starts.append(end)
        end += _aligned(form)
    return starts


def _cut(raw: Tensor, forms: Sequence[Form], device: torch.device) -> list[Tensor]:
    """Return the tensors whose bytes were sent together."""
    raw, parts = raw.to(device), []
    for start, (dtype, shape) in zip(_starts(forms), forms, strict=True):
        size = dtype.itemsize * torch.Size(shape).numel()
        parts.append(raw[start : start + size].view(dtype).view(shape))
    return parts


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
