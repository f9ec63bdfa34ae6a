"""What tables of the report page are made of: cells, their order and their marks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evalkit.results.marks import Mark
from evalkit.results.spreads import format_number


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
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    names: int = 1
    tags: tuple[str, ...] = ()


def number(value: float, mark: Mark | None = None) -> Cell:
    """Return a cell that shows a number with three digits, and sorts by it."""
    return Cell(format_number(value), value, mark=mark)
