"""``--split-batch``: the ranks of torchrun work on each batch together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from evalkit.errors import EvalkitError
from evalkit.launch import Launch, Shard

if TYPE_CHECKING:
    from evalkit.linearization.split import Split

SPLIT_BATCH = click.option(
    "--split-batch",
    is_flag=True,
    help="Under torchrun: ranks share the samples of each batch, not the batches.",
)

SILENT = timedelta(minutes=30)
"""How long a rank waits for another within a call; longer than a solver is alone at work."""


@contextmanager
def joined_split(
    wanted: bool, launch: Launch | None, shard: Shard | None
) -> Iterator[Split | None]:
    """Provide the ranks as a process group that splits batches, None where that is not wanted.

    GPUs are summed over by NCCL, and all that is said goes over gloo, as everything does where
    ranks outnumber the GPUs of their machine: NCCL refuses two ranks on one.

    Args:
        wanted: whether it is.
        launch: where torchrun has placed this process.
        shard: which part of a study is scored, if not all of it.

    Raises:
        EvalkitError: there is one process alone, or the processes do not meet.
    """
    if not wanted:
        yield None
        return
    if launch is None:
        alone = "a shard" if shard is not None else "one process"
        raise EvalkitError(
            f"expected several ranks of torchrun for --split-batch, found {alone}; start it with "
            "torchrun --nproc-per-node K -m evalkit score ..., or leave --split-batch out"
        )
    import torch
    import torch.distributed as dist

    from evalkit.group import Group
    from evalkit.linearization.lost_ranks import lost_ranks
    from evalkit.linearization.split import Split

    store = dist.TCPStore(
        launch.host, launch.port, is_master=False, wait_for_workers=False, timeout=SILENT
    )
    apart = dist.is_nccl_available() and launch.local_world <= torch.cuda.device_count()
    backend = "cpu:gloo,cuda:nccl" if apart else "gloo"
    with lost_ranks():
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"split-batch/{launch.restart}", store),
            rank=launch.rank,
            world_size=launch.world,
            timeout=SILENT,
        )
    try:
        yield Split(Group())
    finally:
        dist.destroy_process_group()
