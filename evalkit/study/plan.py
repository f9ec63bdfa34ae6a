"""The plan of a study: units of work in a fixed order, what is finished left out."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from evalkit.checkpoints import Checkpoint
from evalkit.settings import Settings
from evalkit.storage import lost_rows
from evalkit.storage.lost_rows import Pair
from evalkit.storage.rows import Cell


@dataclass(frozen=True)
class Unit:
    """What is scored at once: a checkpoint and a batch.

    Attributes:
        cell: the checkpoint and the batch.
        pairs: the methods and dampings whose rows are missing.
        is_new: whether nothing of the cell is finished.
    """

    cell: Cell
    pairs: frozenset[Pair]
    is_new: bool = True

    @property
    def key(self) -> lost_rows.Cell:
        """What it is told from others by."""
        return self.cell.checkpoint, self.cell.batch

    @property
    def place(self) -> str:
        """What sentences call it."""
        return f"checkpoint '{self.cell.checkpoint}', batch {self.cell.batch}"


def cells_of(checkpoints: Iterable[Checkpoint], batches: int) -> Iterator[Cell]:
    """Yield the cells of a study, all batches of a checkpoint in a row: it is loaded once.

    Args:
        checkpoints: in their order.
        batches: the batches of each.
    """
    for checkpoint, batch in itertools.product(checkpoints, range(batches)):
        yield Cell(checkpoint.name, checkpoint.step, checkpoint.progress, batch)


def plan(
    cells: Iterable[Cell],
    settings: Settings,
    finished: Mapping[lost_rows.Cell, Collection[Pair]],
) -> tuple[Unit, ...]:
    """Return the units that are left: the same for the same arguments.

    Args:
        cells: the cells of the study, in the order in which they are scored.
        settings: methods and dampings.
        finished: methods and dampings that each finished cell has rows of.
    """
    wanted = frozenset(itertools.product(settings.methods, settings.dampings))
    units = []
    for cell in cells:
        rows = finished.get((cell.checkpoint, cell.batch))
        missing = wanted.difference(rows or ())
        if missing:
            units.append(Unit(cell, missing, rows is None))
    return tuple(units)
