"""The tables of a RUN folder: their files and columns, read and written."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from evalkit.errors import EvalkitError
from evalkit.storage import columns, rows
from evalkit.storage.columns import Source, Table, columns_of, csv_line, parse_csv
from evalkit.storage.files import check_regular

SCORES_FILE = "scores.csv"
BATCHES_FILE = "batches.csv"
FAILURES_FILE = "failures.csv"
TABLES = {
    SCORES_FILE: columns_of(rows.Cell, rows.Score),
    BATCHES_FILE: columns_of(rows.Cell, rows.Batch),
    FAILURES_FILE: columns_of(rows.Cell, rows.Failure),
}
"""Columns by file."""
SCORE_AGAIN = "score again into a new folder with 'evalkit score'"


def names_of(name: str) -> tuple[str, ...]:
    """Return the heads of the columns of a table, by the name of its file."""
    return tuple(column.name for column in TABLES[name])


def averaged(name: str) -> tuple[str, ...]:
    """Return the columns of a table that have a mean over batches."""
    return tuple(column.name for column in TABLES[name] if column.mean)


def csv_head(name: str) -> str:
    """Return the first line of a table."""
    return csv_line(names_of(name))


def csv_rows(table: Table, name: str) -> str:
    """Return the rows of a table as text.

    Args:
        table: the columns of the table, in any order; those that earlier tables lack may lack.
        name: the name of the file.

    Raises:
        EvalkitError: other columns, or a text that does not fit into a line.
    """
    later = {column.name for column in TABLES[name] if column.later}
    difference = set(table) ^ set(names_of(name))
    if difference - (later - set(table)):
        raise EvalkitError(
            f"expected the columns of {name}, found a difference in "
            f"{', '.join(sorted(difference))}; give exactly: {', '.join(names_of(name))}"
        )
    return columns.csv_rows(table, TABLES[name])


def read_text(path: Path) -> str:
    """Return the text of a file of a RUN folder.

    Raises:
        EvalkitError: there is no folder or file, or it holds something else.
    """
    if not path.parent.is_dir():
        raise EvalkitError(
            f"expected a run folder at {path.parent}, found none; make one with 'evalkit score'"
        )
    check_regular(path, SCORE_AGAIN)
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise EvalkitError(
            f"expected {path.name} in the run folder {path.parent}, found none; {SCORE_AGAIN}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise EvalkitError(f"expected text in {path}, found {error}; {SCORE_AGAIN}") from error


def read_table(path: Path) -> pd.DataFrame:
    """Return the whole lines of a table, typed; a last line without an end is left out.

    Raises:
        EvalkitError: no file, missing columns, or a line or value that cannot be read.
    """
    return _parsed(read_text(path), path)


def read_if_there(path: Path) -> pd.DataFrame:
    """Return a table as :func:`read_table` does, without rows where there is no file.

    Raises:
        EvalkitError: missing columns, or a line or value that cannot be read.
    """
    check_regular(path, SCORE_AGAIN)
    try:
        text = path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return empty_table(path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise EvalkitError(f"expected text in {path}, found {error}; {SCORE_AGAIN}") from error
    return _parsed(text, path)


def empty_table(name: str) -> pd.DataFrame:
    """Return a table without rows, by the name of its file."""
    return pd.DataFrame({c.name: pd.Series([], dtype=c.dtype) for c in TABLES[name]})


def _parsed(text: str, path: Path) -> pd.DataFrame:
    whole = text[: text.rfind("\n") + 1]
    return parse_csv(whole, TABLES[path.name], Source(path, SCORE_AGAIN))
