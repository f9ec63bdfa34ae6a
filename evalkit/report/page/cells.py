"""What tables of the report page are made of: cells, their order and their marks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from evalkit.results.marks import Mark
from evalkit.results.spreads import format_number

_GLANCE = 9
"""The most rows that are found at a glance."""


@dataclass(frozen=True)
class Cell:
    """One table cell.

    Attributes:
        text: what it says.
        value: the number it stands for, by which a column sorts; text sorts by itself.
        note: a second, smaller line.
        warning: a third line that stands out.
        worse: whether the value is worse than SGD's.
        mark: behind the text.
        tag: of the curves that the row is about, where it begins one.
    """

    text: str
    value: float | None = None
    note: str = ""
    warning: str = ""
    worse: bool = False
    mark: Mark | None = None
    tag: str = ""

    @property
    def order(self) -> str:
        """The value as JavaScript reads numbers; empty for text."""
        if self.value is None:
            return ""
        if math.isinf(self.value):
            return "Infinity" if self.value > 0 else "-Infinity"
        return "NaN" if math.isnan(self.value) else repr(float(self.value))


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        head: column names.
        rows: a cell per column.
        names: leading columns that name the row.
        tags: of the curves that each column is about; empty where rows or none are about any.
        groups: what each row belongs to, rows of a group one after another; empty without groups.
        grouped_by: what a group is.
        spare: columns that are shown on demand.
        columns: what its columns are.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    names: int = 1
    tags: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    grouped_by: str = "family"
    spare: frozenset[int] = frozenset()
    columns: str = "checkpoints"

    @property
    def parts(self) -> list[tuple[str, list[tuple[Cell, ...]]]]:
        """The rows by group, each behind its title, which is empty without groups."""
        titles = self.groups or ("",) * len(self.rows)
        named = groupby(zip(titles, self.rows, strict=True), key=itemgetter(0))
        return [(title, [row for _, row in rows]) for title, rows in named]

    @property
    def searched(self) -> bool:
        """Whether it has so many rows that they are searched."""
        return len(self.rows) > _GLANCE


def number(value: float, mark: Mark | None = None) -> Cell:
    """Return a cell that shows a number with three digits, and sorts by it."""
    return Cell(format_number(value), value, mark=mark)
