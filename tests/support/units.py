"""Units of a study that score nothing, for tests of what executes them."""

from __future__ import annotations

import os
import warnings

from evalkit.storage.rows import Cell
from evalkit.study.execute import Rows
from evalkit.study.plan import Unit

UNITS = tuple(Unit(Cell("one", 0, 0.0, batch), frozenset()) for batch in range(9))


def rows_of(unit: Unit, shown: bool) -> Rows:
    """Rows that name the process."""
    batch = unit.cell.batch
    if batch == 5:
        warnings.warn("of unit 5", stacklevel=2)
    return Rows({"process": [os.getpid()], "shown": [shown]}, {"batch": [batch]})


def takes_gradients() -> bool:
    """Stand in for a process that has taken no gradient before."""
    return True
