"""Several processes on one command line: what all of them would say is said once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evalkit.errors import EvalkitError
from evalkit.launch import Launch, Shard, given_threads, launched, parse_shard

if TYPE_CHECKING:
    from evalkit.study.ranks import Ranks

ENDED_LIKE_ANOTHER = 2
"""Exit status of a rank whose sentence another one says: that of unusable input."""


class ShardText(click.ParamType):
    """``i/k``, as a shard."""

    name = "i/k"

    def convert(self, value: Any, param: Any, ctx: Any) -> Shard:
        if isinstance(value, Shard):
            return value
        try:
            return parse_shard(str(value))
        except EvalkitError as error:
            self.fail(str(error), param, ctx)


SHARD = click.option(
    "--shard",
    type=ShardText(),
    help="Score the i-th of k parts, beside starts that score the others into the same RUN.",
)


def launched_without(shard: Shard | None, fresh: bool) -> Launch | None:
    """Return where torchrun has placed this process, None where it is alone.

    Raises:
        click.UsageError: it is a shard as well, or a shard is to start over.
    """
    launch = launched()
    if launch is not None and shard is not None:
        raise click.UsageError(
            f"expected --shard without torchrun, found both (rank {launch.rank} of {launch.world});"
            " leave --shard out: ranks share the batches among themselves"
        )
    if shard is not None and fresh:
        raise click.UsageError(
            "expected --shard without --fresh, found both, by which each shard would set aside "
            "what others have scored; name another --out"
        )
    return launch


@contextmanager
def joined_ranks(launch: Launch | None) -> Iterator[Ranks | None]:
    """Provide the ranks that torchrun has started, None where this process is alone.

    What several of them warn of, or end with, is said by one.
    """
    if launch is None:
        yield None
        return
    # The store's own words on a connection that ends are a page for each rank.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    import torch

    from evalkit.study.ranks import joined

    count = given_threads(launch)
    if count is not None:
        torch.set_num_threads(count)
    with joined(launch) as ranks, warnings.catch_warnings():
        shown = warnings.showwarning

        def once(message: Warning | str, *more: Any, **named: Any) -> None:
            if ranks.first_to(f"warn {message}"):
                shown(message, *more, **named)

        warnings.showwarning = once
        try:
            yield ranks
        except Exception as error:
            if ranks.first_to(f"say {error}"):
                raise
            raise click.exceptions.Exit(ENDED_LIKE_ANOTHER) from error


def own_device(device: str, launch: Launch | None) -> str:
    """Return the device of a rank: each has one of its machine's GPUs, in turn, where it may."""
    if launch is None or device != "cuda":
        return device
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{launch.local_rank % count}" if count else device


def scored_cells(run: Path) -> tuple[int, int, int]:
    """Return how many batches of a RUN are scored by all who write to it, failed, and asked for."""
    from evalkit.storage.run_folder import cells, read_all, read_provenance

    provenance = read_provenance(run)
    total = len(provenance["checkpoints"]) * provenance["settings"]["batches"]
    tables = read_all(run)
    scored = cells(tables.batches)
    return len(scored), len(cells(tables.failures) - scored), total
