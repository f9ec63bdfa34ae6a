"""What commands print: lines that any terminal can show, tables, and words of warning."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

import click

from evalkit.cli.wording import in_options
from evalkit.storage.json_files import printable

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from evalkit.storage.run_folder import Run


def say(text: object) -> None:
    """Print a line; what cannot be written, as in a path that is not UTF-8, becomes escapes."""
    click.echo(in_options(printable(text)))


def say_wrapped(text: str) -> None:
    """Print a sentence on lines of at most 80 characters, words whole."""
    say(textwrap.fill(in_options(text), 80, break_long_words=False, break_on_hyphens=False))


def remark(kind: str, text: str) -> None:
    """Print a sentence on standard error, unless it is empty.

    Args:
        kind: ``"note"``, ``"warning"`` or ``"error"``.
        text: the sentence.
    """
    if text:
        print(f"evalkit: {kind}: {in_options(printable(text))}", file=sys.stderr, flush=True)


def remark_gaps(run: Run) -> None:
    """Say what the tables of a run lack, and what no mean of it holds, each with its count."""
    from evalkit.results.undefined import undefined_sentences
    from evalkit.storage.lost_rows import lost_rows

    remark("warning", lost_rows(run))
    for sentence in undefined_sentences(run):
        remark("note", sentence)


def print_table(table: Table) -> None:
    """Print a table, wider than the window rather than cut off."""
    from rich.console import Console

    Console(width=max(window(), width_of(table))).print(table)


def print_frame(frame: pd.DataFrame, title: str) -> None:
    """Print a data frame of texts as a table, its first column on the left.

    One that is wider than the window is printed in parts, each with the first column.
    """
    for place, table in enumerate(tables_of_frame(frame, window())):
        table.title = None if place else title
        print_table(table)


def tables_of_frame(frame: pd.DataFrame, width: int) -> list[Table]:
    """Return a data frame of texts as tables with as many of its columns as fit.

    Args:
        frame: its first column names the rows, and stands in each table.
        width: characters in a line.
    """
    columns = list(range(1, frame.shape[1]))
    tables: list[Table] = []
    while columns or not tables:
        count = len(columns)
        table = _frame_table(frame.iloc[:, [0, *columns]])
        while count > 1 and width_of(table) > width:
            count -= 1
            table = _frame_table(frame.iloc[:, [0, *columns[:count]]])
        tables.append(table)
        columns = columns[count:]
    return tables


def _frame_table(frame: pd.DataFrame) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    for position, column in enumerate(frame.columns):
        table.add_column(Text(column), justify="right" if position else "left", no_wrap=True)
    for row in frame.itertuples(index=False):
        table.add_row(*map(Text, row))
    return table


def window() -> int:
    """Return how many characters a line of the window has, 80 where there is none."""
    from rich.console import Console

    return Console().width


def width_of(table: Table) -> int:
    """Return how many characters a line of a table takes without wrapping."""
    from rich.console import Console
    from rich.measure import Measurement

    endless = Console(width=10_000)
    return Measurement.get(endless, endless.options, table).maximum
