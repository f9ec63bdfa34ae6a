"""Work of two processes: the test's own and one that is started beside it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def together(work: Callable[[int], T]) -> tuple[T, T]:
    """Return what a function of the rank returns in each of two processes of one group.

    One process is this one, so that torch is loaded once more and not twice.

    Args:
        work: importable by its name.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        found, sent = context.Pipe(duplex=False)
        place = str(Path(folder) / "group")
        other = context.Process(target=_sent, args=(work, place, sent))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        other.start()
        sent.close()
        try:
            mine = _ranked(work, 0, place)
            return mine, pickle.loads(found.recv_bytes())
        finally:
            other.join(120)


def _sent(work: Callable[[int], T], place: str, sent: Connection) -> None:
    torch.set_num_threads(1)
    # By value: torch would hand over memory of a process that ends.
    sent.send_bytes(pickle.dumps(_ranked(work, 1, place)))


def _ranked(work: Callable[[int], T], rank: int, place: str) -> T:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    try:
        return work(rank)
    finally:
        dist.destroy_process_group()
