"""Results of a table that are asked for again and again, found once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar

import pandas as pd

Found = TypeVar("Found")
_MOST = 8
"""Tables that are remembered by each function."""


class Remembered:
    """What a function returned for a table, as long as the table is there.

    A report needs the means and marks of a run in each of its figures; the tables of a run are
    not changed after they are read.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[pd.DataFrame], object]] = {}

    def of(self, table: pd.DataFrame, find: Callable[[pd.DataFrame], Found]) -> Found:
        """Return what ``find`` returns for a table, as it was found before for the same object."""
        known = self._found.get(id(table))
        if known is not None and known[0]() is table:
            return known[1]  # type: ignore[return-value]
        found = find(table)
        if len(self._found) >= _MOST:
            self._found.pop(next(iter(self._found)))
        self._found[id(table)] = (weakref.ref(table), found)
        return found
