"""The tables of a RUN folder: their columns, and CSV that keeps every digit and type."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from evalkit.errors import EvalkitError, shortened
from evalkit.storage.files import check_regular
from evalkit.storage.json_files import is_unicode

SCORES_FILE = "scores.csv"
BATCHES_FILE = "batches.csv"

KEY_COLUMNS = ("checkpoint", "step", "progress", "batch")
SCORE_COLUMNS = (
    "method",
    "damping",
    "gamma",
    "ratio",
    "efficiency",
    "fisher_norm",
    "slope",
    "norm",
    "cosine_sgd",
    "iterations",
    "relative_residual",
    "converged",
    "solver",
    "error",
    "dtype",
)
BATCH_COLUMNS = (
    "num_samples",
    "loss",
    "imbalance",
    "logit_imbalance",
    "target_probability",
    "gamma_floor",
    "gram_rank",
    "data_sha256",
)
TABLES = {
    SCORES_FILE: KEY_COLUMNS + SCORE_COLUMNS,
    BATCHES_FILE: KEY_COLUMNS + BATCH_COLUMNS,
}
_TEXT = frozenset({"checkpoint", "method", "solver", "dtype", "data_sha256"})
_WHOLE = frozenset({"step", "batch", "num_samples", "gram_rank", "iterations"})
_FLAG = frozenset({"converged"})
_OPTIONAL = frozenset({"solver", "error", "dtype", "data_sha256"})
"""Columns that a table may lack, and then is read and written with empty ones."""
_REQUIRED = frozenset({*KEY_COLUMNS, "method", "damping", "num_samples"})
_SIGNED = frozenset({"slope", "cosine_sgd"})
"""Numbers that may be negative; every other is a size, a count or a share."""
SCORE_AGAIN = "score again into a new folder with 'evalkit score'"


def csv_line(fields: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue()


def csv_rows(frame: pd.DataFrame, name: str) -> str:
    """Return the rows as text: floats in full precision, missing values empty."""
    columns = TABLES[name]
    absent = _OPTIONAL & set(columns) - set(frame.columns)
    frame = frame.assign(**{name: "" if name in _TEXT else math.nan for name in absent})
    if set(frame.columns) != set(columns):
        difference = sorted(set(frame.columns) ^ set(columns))
        raise EvalkitError(
            f"expected the columns of {name}, found a difference in {', '.join(difference)}; "
            f"give exactly: {', '.join(columns)}"
        )
    typed = pd.DataFrame({column: _typed(frame[column]) for column in columns})
    for column in _TEXT & set(columns):
        for text in typed[column].unique():
            check_name(column, text)
    return typed.to_csv(index=False, header=False, lineterminator="\n")


def check_name(kind: str, text: str) -> None:
    """Check that a table can hold a name.

    Args:
        kind: what is named.
        text: the name.

    Raises:
        EvalkitError: it has several lines, or holds what UTF-8 cannot write.
    """
    if "\n" in text or "\r" in text:
        raise EvalkitError(f"expected a {kind} name of one line, found {text!r}; rename it")
    if not is_unicode(text):
        raise EvalkitError(f"expected a {kind} name in UTF-8, found {text!a}; rename it")


def _typed(column: pd.Series) -> pd.Series:
    """Return a column in the type its name calls for."""
    if column.name in _TEXT:
        return column.fillna("").astype(str)
    if column.name in _FLAG:
        return column.astype("boolean")
    numbers = pd.to_numeric(column)
    return numbers.astype("Int64") if column.name in _WHOLE else numbers.astype("float64")


def read_text(path: Path) -> str:
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
    columns = TABLES[path.name]
    text = read_text(path)
    try:
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    except csv.Error as error:
        raise EvalkitError(f"expected CSV in {path}, found: {error}; {SCORE_AGAIN}") from error
    header = lines[0] if lines else []
    missing = [column for column in columns if column not in {*header, *_OPTIONAL}]
    if missing:
        raise EvalkitError(
            f"expected the columns {', '.join(columns)} in {path}, "
            f"found no {', '.join(missing)}; {SCORE_AGAIN}"
        )
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise EvalkitError(
                f"expected {len(header)} fields in line {number} of {path}, "
                f"found {len(line)}; {SCORE_AGAIN}"
            )
    place = {column: header.index(column) for column in columns if column in header}
    return pd.DataFrame(
        {
            column: _parsed(column, [line[place[column]] for line in lines[1:]], path)
            if column in place
            else _parsed(column, [""] * len(lines[1:]), path)
            for column in columns
        }
    )


def _number(text: str, column: str) -> float:
    value = float(text)
    if column in _REQUIRED and not math.isfinite(value):
        raise ValueError
    if value < 0 and column not in _SIGNED:
        raise ValueError
    return value


def whole_number(text: str) -> int:
    """Return a number of things, as tables have it.

    Raises:
        ValueError: it is not whole, negative, or too large for 64 bits.
    """
    value = int(text)
    if not 0 <= value < 2**63:
        raise ValueError(text)
    return value


def _parsed(column: str, texts: list[str], path: Path) -> pd.Series:
    """Return one column from its texts; Python's own float keeps every digit."""
    if column in _OPTIONAL & _TEXT:
        return pd.Series([text or None for text in texts], dtype="str")
    if column in _TEXT:
        return pd.Series(texts, dtype=str)
    values: list[Any] = []
    for number, text in enumerate(texts, start=2):
        try:
            if not text and column not in _REQUIRED:
                values.append(None if column in _WHOLE | _FLAG else math.nan)
            elif column in _FLAG:
                values.append({"True": True, "False": False}[text])
            else:
                values.append(whole_number(text) if column in _WHOLE else _number(text, column))
        except (ValueError, KeyError):
            kind = "True or False" if column in _FLAG else "a number"
            if column not in _SIGNED | _FLAG:
                kind = "a number of at least 0"
            raise EvalkitError(
                f"expected {kind} as {column} in line {number} of {path}, "
                f"found '{shortened(text)}'; {SCORE_AGAIN}"
            ) from None
    if column in _FLAG:
        return pd.Series(values, dtype="boolean")
    if column in _WHOLE:
        return pd.Series(values, dtype="int64" if column in _REQUIRED else "Int64")
    return pd.Series(values, dtype="float64")
