"""Where a process stands among several that share a study: a rank of torchrun, or a shard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from evalkit.errors import EvalkitError, shortened

_VARIABLES = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
_AGENT = "TORCHELASTIC_USE_AGENT_STORE"
_RESTART = "TORCHELASTIC_RESTART_COUNT"


@dataclass(frozen=True)
class Launch:
    """What torchrun tells a process that it starts.

    Attributes:
        rank: number of the process, from 0.
        world: processes in all.
        local_rank: number of the process on its machine, from 0.
        local_world: processes on its machine.
        restart: how often torchrun has started them again.
        host: of the store that they share.
        port: of that store.
        is_served: whether torchrun itself serves the store, which otherwise rank 0 does.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    restart: int
    host: str
    port: int
    is_served: bool

    @property
    def writer(self) -> str:
        """The name of what this rank writes in a RUN."""
        return f"rank-{self.rank:04d}"


@dataclass(frozen=True)
class Shard:
    """One of several starts that share the cells of a study without knowing of each other.

    Attributes:
        number: of this one, from 1.
        count: how many there are.
    """

    number: int
    count: int

    @property
    def writer(self) -> str:
        """The name of what this shard writes in a RUN."""
        return f"shard-{self.number}-of-{self.count}"


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Return where torchrun has placed this process; None where it is alone.

    Other launchers that set the same variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) are
    taken as torchrun, with a store that rank 0 serves.

    Raises:
        EvalkitError: a variable holds something other than a number.
    """
    if not environment.keys() >= _VARIABLES:
        return None
    rank, world = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if world < 2:
        return None
    return Launch(
        rank,
        world,
        _number(environment, "LOCAL_RANK", rank),
        _number(environment, "LOCAL_WORLD_SIZE", 1),
        _number(environment, _RESTART, 0),
        environment["MASTER_ADDR"],
        _number(environment, "MASTER_PORT"),
        environment.get(_AGENT) == str(True),
    )


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process says what all ranks find in the command line."""
    return environment["RANK"] == "0" if environment.keys() >= _VARIABLES else True


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise EvalkitError(
            f"expected a number in the environment variable {name}, as torchrun sets it, found "
            f"'{shortened(str(text))}'; start with torchrun, or unset {name}"
        )
    return int(text)


def parse_shard(text: str) -> Shard:
    """Return the shard that ``i/k`` names.

    Raises:
        EvalkitError: it is no such pair, or i is not between 1 and k.
    """
    number, slash, count = (part.strip() for part in text.partition("/"))
    if not slash or not (number + count).isdecimal() or not number or not count:
        raise EvalkitError(
            "expected a shard as i/k, such as 2/8 for the second of eight, found "
            f"'{shortened(text)}'; write two whole numbers"
        )
    shard = Shard(int(number), int(count))
    if not 1 <= shard.number <= shard.count:
        raise EvalkitError(
            f"expected a shard from 1/{shard.count} to {shard.count}/{shard.count}, found "
            f"'{shortened(text)}'; count shards from 1"
            if shard.count
            else f"expected a shard of at least one, found '{shortened(text)}'; write 1/1"
        )
    return shard


def given_threads(launch: Launch, environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the threads that each rank of a machine takes; None where the user has said so.

    torchrun sets OMP_NUM_THREADS to 1 where nobody has, so that it counts as said only where
    torchrun was itself started with it.
    """
    own = environment.get("OMP_NUM_THREADS")
    if own is not None and (own != "1" or launch.local_world < 2 or _said_before()):
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // launch.local_world)


def _said_before() -> bool:
    """Return whether the process that started this one was given OMP_NUM_THREADS."""
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            return any(entry.startswith(b"OMP_NUM_THREADS=") for entry in file.read().split(b"\0"))
    except OSError:  # no such system: what is set is taken as said
        return True
