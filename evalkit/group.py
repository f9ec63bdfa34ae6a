"""The processes of a group (``torch.distributed``), each with its own part of a batch.

Every process calls the same functions in the same order; without a process group there is one, to
which all of them are trivial.

What a message takes is not known where it is received, and telling it first would double the time
of short ones, which most are. So a first round has as many bytes for all: a head, and the message
itself where it is short.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from evalkit.messages import Form, Message, bytes_of, cut, forms_of, read, write_tensors

T = TypeVar("T")

SHORT = 1 << 14
"""Bytes of a first round, which take hardly longer on a network than a few would."""

_HEAD = struct.Struct("<qq")
"""What a first round begins with: the bytes of the message's frame, and of the message."""


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
        self._backends = str(dist.get_backend_config(group)) if together else ""

    def objects(self, value: T) -> list[T]:
        """Return the small values of all processes, by rank."""
        return self.gathered(value, torch.device("cpu"))

    def gathered(self, value: T, device: torch.device) -> list[T]:
        """Return the values of all processes, by rank: anything that is made of tensors.

        Args:
            value: of this process; its own is returned as it is.
            device: of its tensors, and of those that come.
        """
        if self.size == 1:
            return [value]
        message = Message.of(value)
        first = self._first(message)
        rounds = [torch.empty_like(first) for _ in range(self.size)]
        dist.all_gather(rounds, first, group=self._group)
        heads = [_head(one) for one in rounds]
        bodies = [one[_HEAD.size :] for one in rounds]
        others = [rank for rank in range(self.size) if rank != self.rank]
        sent = {}
        if not _is_short(size := message.lengths[1]):
            raw = self._empty(device, size)
            message.write(raw)
            sent = dict.fromkeys(others, raw)
        awaited = {rank: size for rank in others if not _is_short(size := heads[rank][1])}
        for rank, body in self._exchanged(sent, awaited, device).items():
            bodies[rank] = body
        return [
            value if rank == self.rank else read(body, frame, device)
            for rank, (body, (frame, _)) in enumerate(zip(bodies, heads, strict=True))
        ]

    def sum(self, values: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.size == 1:
            return
        for value in values:
            here = value.to(self._place(value.device))
            dist.all_reduce(here, group=self._group)
            if here is not value:
                value.copy_(here)

    def meet(self, device: torch.device) -> None:
        """Let all processes meet on a device; before some of them send each other what lies there.

        NCCL wants all of them in the first operation of a group.
        """
        if self.size > 1 and self._place(device).type != "cpu":
            self.sum([torch.zeros(1, device=device)])

    def of_first(self, value: T, device: torch.device) -> T:
        """Return the value of rank 0 in every process: anything that is made of tensors.

        Args:
            value: of rank 0, which it gets back as it is; of no account elsewhere.
            device: of the tensors that come.
        """
        if self.size == 1:
            return value
        leads = self.rank == 0
        message = Message.of(value if leads else None)
        first = self._first(message)
        dist.broadcast(first, src=self._global(0), group=self._group)
        (frame, size), body = _head(first), first[_HEAD.size :]
        if not _is_short(size):
            body = self._empty(device, size)
            if leads:
                message.write(body)
            dist.broadcast(body, src=self._global(0), group=self._group)
        return value if leads else read(body, frame, device)

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
        raws = {}
        for rank, tensors in sent.items():
            if tensors:
                raws[rank] = self._empty(device, bytes_of(forms_of(tensors)))
                write_tensors(tensors, raws[rank])
        sizes = {rank: bytes_of(forms) for rank, forms in awaited.items() if forms}
        found = self._exchanged(raws, sizes, device)
        return {rank: cut(found[rank], f, device) if f else [] for rank, f in awaited.items()}

    def _exchanged(
        self, sent: Mapping[int, Tensor], awaited: Mapping[int, int], device: torch.device
    ) -> dict[int, Tensor]:
        """Return the bytes that come from other processes, by rank, arguments as their bytes."""
        found = {rank: self._empty(device, size) for rank, size in awaited.items()}
        ways = [(dist.isend, sent), (dist.irecv, found)]
        work = [
            dist.P2POp(way, raw, self._global(rank), self._group)
            for way, raws in ways
            for rank, raw in raws.items()
        ]
        for one in dist.batch_isend_irecv(work) if work else ():
            one.wait()
        return found

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)

    def _place(self, device: torch.device) -> torch.device:
        """Return from which memory the group sends what lies on a device."""
        if "nccl" not in self._backends:
            return torch.device("cpu")
        if device.type == "cpu" and "cpu" not in self._backends:
            return torch.device("cuda", torch.cuda.current_device())
        return device

    def _empty(self, device: torch.device, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self._place(device))

    def _first(self, message: Message) -> Tensor:
        """Return what a message sends in the first round."""
        raw = self._empty(torch.device("cpu"), SHORT)
        head = _HEAD.pack(*message.lengths)
        raw[: _HEAD.size] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        if _is_short(message.lengths[1]):
            message.write(raw[_HEAD.size :])
        return raw


def _is_short(size: int) -> bool:
    """Return whether a message of so many bytes goes over in the first round."""
    return size <= SHORT - _HEAD.size


def _head(raw: Tensor) -> tuple[int, int]:
    """Return the bytes of a message's frame, and of the message."""
    frame, size = _HEAD.unpack(raw[: _HEAD.size].cpu().numpy().tobytes())
    return frame, size
