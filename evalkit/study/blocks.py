"""How the cells of a study are divided among processes: blocks for ranks, runs for shards."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evalkit.launch import Shard
from evalkit.storage.rows import Cell

SHARE = 2
"""A block is at most one part in this many times the ranks of what is left: the first blocks are
large, so that few checkpoints are loaded, and the last ones single units, so that ranks end
together, also where some are half as fast as others."""


def shard_of(cells: Sequence[Cell], shard: Shard) -> tuple[Cell, ...]:
    """Return the cells of a shard: a run of the list, as long as the others' to within one.

    It depends on the list alone, not on what is finished, so that shards may start at any time. A
    run rather than every k-th cell, since it has the cells of few checkpoints, and each that it has
    is loaded.

    Args:
        cells: of the study, checkpoint by checkpoint.
        shard: which of them is asked for.
    """
    first, stop = (len(cells) * at // shard.count for at in (shard.number - 1, shard.number))
    return tuple(cells[first:stop])


def blocks_of(checkpoints: Sequence[str], ranks: int) -> tuple[range, ...]:
    """Return the blocks of a list of units, as ranges of places in it.

    Args:
        checkpoints: of each unit.
        ranks: that share the units.
    """
    blocks, first = [], 0
    while first < len(checkpoints):
        most = math.ceil((len(checkpoints) - first) / (SHARE * ranks))
        stop = first + 1
        while stop < min(first + most, len(checkpoints)) and (
            checkpoints[stop] == checkpoints[first]
        ):
            stop += 1
        blocks.append(range(first, stop))
        first = stop
    return tuple(blocks)
