"""The table of ratios that ``evalkit score`` prints, in a shape that fits the window."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.cli.console import print_table, remark_gaps, say, say_wrapped, width_of, window
from evalkit.names import MANY, arranged, family

_BETWEEN = 2
"""Characters between columns."""
MOST_TABLES = 2
"""Below one another, of one run; of more checkpoints than they hold, some are shown."""

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from evalkit.storage.run_folder import Run


def print_ratios(run: Path) -> Run:
    """Print ratios and efficiencies of a run, what its marks mean, and its headline.

    A column per method where that fits the window; else a row per method, in families where there
    are many, and checkpoints beside one another: as many as fit two tables, evenly over training.
    The run is returned.
    """
    from evalkit.results.summaries import (
        final_table,
        headline,
        near_zero,
        shown_marks,
        summarize,
    )
    from evalkit.storage.run_folder import read_run

    result = read_run(run)
    remark_gaps(result)
    say(
        "gamma relative to SGD's, and efficiency (floor / gamma), at damping "
        f"{result.scores['damping'].min():g}"
    )
    methods = arranged(near_zero(summarize(result))["method"])
    rows = final_table(result)
    shown = shown_rows(rows, methods, window())
    for table in tables_of(shown, methods, window()):
        print_table(table)
    if len(shown) < len(rows):
        say_wrapped(
            f"{len(shown)} of {len(rows)} checkpoints are shown, evenly over training; "
            f"'evalkit report {run}' makes a page of all."
        )
    for sentence in shown_marks(result).sentences:
        say_wrapped(sentence)
    say_wrapped(headline(result))
    return result


def shown_rows(rows: pd.DataFrame, methods: tuple[str, ...], width: int) -> pd.DataFrame:
    """Return the checkpoints that are printed: all, or what :data:`MOST_TABLES` tables hold.

    Args:
        rows: the result of ``results.summaries.final_table``.
        methods: those of its columns.
        width: characters in a line.
    """
    from evalkit.results.summaries import evenly_chosen

    if width_of(_by_checkpoint(rows)) <= width:
        return rows
    chosen = rows
    for most in range(len(rows), 0, -1):
        chosen = rows.iloc[list(evenly_chosen(len(rows), most))]
        if len(_parts(chosen, methods, width)) <= MOST_TABLES:
            break
    return chosen


def tables_of(rows: pd.DataFrame, methods: tuple[str, ...], width: int) -> list[Table]:
    """Return a table of ratios as it is printed.

    Args:
        rows: the result of ``results.summaries.final_table``.
        methods: those of its columns.
        width: characters in a line.
    """
    whole = _by_checkpoint(rows)
    if width_of(whole) <= width:
        return [whole]
    return [_by_method(rows[part], methods) for part in _parts(rows, methods, width)]


def _parts(rows: pd.DataFrame, methods: tuple[str, ...], width: int) -> list[slice]:
    """Return the checkpoints of each table: as many as fit, one at least."""
    from rich.cells import cell_len

    names = width_of(_by_method(rows[:0], methods))
    parts: list[slice] = []
    first, taken = 0, names
    for place, texts in enumerate(rows.itertuples(index=False)):
        column = _BETWEEN + max(map(cell_len, texts))
        if place > first and taken + column > width:
            parts.append(slice(first, place))
            first, taken = place, names
        taken += column
    return [*parts, slice(first, len(rows))]


def _by_checkpoint(rows: pd.DataFrame) -> Table:
    """Return a row per checkpoint and a column per method."""
    from rich.text import Text

    table = _table()
    for position, column in enumerate(rows.columns):
        table.add_column(Text(column), justify="right" if position else "left", no_wrap=True)
    for row in rows.itertuples(index=False):
        table.add_row(*map(Text, row))
    return table


def _by_method(rows: pd.DataFrame, methods: tuple[str, ...]) -> Table:
    """Return a row per method and a column per checkpoint, its progress below its name."""
    from rich.text import Text

    table = _table()
    names, progress, *columns = (list(rows.iloc[:, place]) for place in range(rows.shape[1]))
    table.add_column(Text("checkpoint\nprogress"), no_wrap=True)
    for name, value in zip(names, progress, strict=True):
        table.add_column(Text(f"{name}\n{value}"), justify="right", no_wrap=True)
    shown = rows.columns[2:]
    for place, method in enumerate(methods):
        if place and len(methods) > MANY and family(method) != family(methods[place - 1]):
            table.add_section()
        table.add_row(Text(shown[place]), *map(Text, columns[place]))
    return table


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
