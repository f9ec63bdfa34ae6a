"""Columns by the fields of a dataclass, and CSV of them that keeps every digit and type."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pandas as pd

from evalkit.counts import counted
from evalkit.errors import EvalkitError, shortened
from evalkit.storage.json_files import is_unicode

_ROUND_TRIP = {"float_precision": "round_trip"}
_EXACT: dict[str, Any] = (
    {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else _ROUND_TRIP
)
"""What lets pandas read floats as Python does: from 3.1 on it always does."""
LARGE = 1 << 16
"""Characters from which on a table is read column by column, which takes little ones longer."""
_FLAGS = {"True": True, "False": False}
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

Table = Mapping[Any, Any]
"""Columns by name, each a sequence of values: a data frame, or lists, which take less time."""


@dataclass(frozen=True)
class Column:
    """What a column holds.

    Attributes:
        name: its head.
        kind: ``str``, ``int``, ``float`` or ``bool``.
        needed: no number is missing, and all are finite.
        signed: numbers may be negative.
        later: tables of earlier versions lack it.
        mean: ``"arithmetic"`` or ``"geometric"`` where it has a mean over batches.
        flags: what the words of a column of flags mean.
    """

    name: str
    kind: type
    needed: bool = False
    signed: bool = False
    later: bool = False
    mean: str = ""
    flags: Mapping[str, bool] | None = None

    @property
    def dtype(self) -> str:
        """The type in a frame; one that is needed has no missing values."""
        if self.needed and self.kind is not str:
            return {int: "int64", bool: "bool"}.get(self.kind, "float64")
        return {str: "str", int: "Int64", bool: "boolean"}.get(self.kind, "float64")

    def value(self, text: str) -> Any:
        """Return the value that a text stands for.

        Raises:
            ValueError, KeyError: it stands for none.
        """
        if self.kind is str:
            if _CONTROL.search(text):  # which a terminal would follow
                raise ValueError(text)
            return text or (None if self.later else "")
        if not text and not self.needed:
            return math.nan if self.kind is float else None
        if self.kind is bool:
            return (self.flags or _FLAGS)[text]
        # Python's own float keeps every digit.
        value = self.kind(text)
        if (value < 0 and not self.signed) or (self.kind is int and value >= 2**63):
            raise ValueError(text)
        if self.needed and not math.isfinite(value):
            raise ValueError(text)
        return value

    def text(self, value: Any) -> str:
        """Return what stands for a value: floats in full precision, nothing for a missing one."""
        if value is None or value is pd.NA or value != value:
            return ""
        return str(value) if self.kind is str else repr(self.kind(value))

    @property
    def expected(self) -> str:
        """What an error sentence expects in it."""
        if self.kind is bool:
            return " or ".join(self.flags or _FLAGS)
        if self.kind is str:
            return "a text without control characters"
        return "a number" if self.signed else "a number of at least 0"


@dataclass(frozen=True)
class Source:
    """Where a text is from, as errors call it.

    Attributes:
        path: the path of the file.
        advice: the end of an error sentence.
        above: lines of the file above the text.
    """

    path: Path
    advice: str
    above: int = 0

    def error(self, expected: str, found: str) -> EvalkitError:
        """Return the error of a text that is not what it should be."""
        return EvalkitError(f"expected {expected}, found {found}; {self.advice}")


@cache
def columns_of(*rows: type) -> tuple[Column, ...]:
    """Return the columns that the fields of dataclasses are, in their order."""
    found = []
    for row in rows:
        hints = get_type_hints(row)
        for field in fields(row):
            hint = hints[field.name]
            kind = (*get_args(hint), hint)[0]  # what it is beside None
            found.append(Column(field.name, kind, **field.metadata))
    return tuple(found)


def table_of(rows: Sequence[Any], kind: type) -> dict[str, list[Any]]:
    """Return rows as columns.

    Args:
        rows: the rows of one dataclass.
        kind: that dataclass.
    """
    return {c.name: [getattr(row, c.name) for row in rows] for c in columns_of(kind)}


def frame_of(rows: Iterable[Any], kind: type) -> pd.DataFrame:
    """Return rows as a data frame; arguments as :func:`table_of`."""
    table = table_of(list(rows), kind)
    return pd.DataFrame({c.name: pd.Series(table[c.name], dtype=c.dtype) for c in columns_of(kind)})


def csv_line(fields: Sequence[str]) -> str:
    """Return one line of CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue()


def csv_rows(table: Table, columns: Sequence[Column]) -> str:
    """Return the rows as lines of CSV; columns that the table lacks are empty.

    Raises:
        EvalkitError: a text does not fit into a line.
    """
    count = max((len(table[name]) for name in table), default=0)
    texts = [
        _texts(column, table[column.name]) if column.name in table else [""] * count
        for column in columns
    ]
    for column, values in zip(columns, texts, strict=True):
        if column.kind is str:
            for text in set(values):
                check_name(column.name, text)
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(zip(*texts, strict=True))
    return lines.getvalue()


def _texts(column: Column, values: Sequence[Any]) -> list[str]:
    """Return what stands for the values of a column."""
    if not isinstance(values, pd.Series):
        return list(map(column.text, values))
    if values.dtype == "float64" and column.kind is float and not column.needed:
        return ["" if value != value else repr(value) for value in values.to_list()]
    codes, different = pd.factorize(values)  # few, of many rows
    texts = [*map(column.text, different), ""]
    return [texts[code] for code in codes]


def check_name(kind: str, text: str) -> None:
    """Check that a table can hold a name.

    Args:
        kind: what is named.
        text: the name.

    Raises:
        EvalkitError: it has several lines or control characters, or holds what UTF-8 cannot write.
    """
    if _CONTROL.search(text):
        raise EvalkitError(f"expected a {kind} name of one line, found {text!r}; rename it")
    if not is_unicode(text):
        raise EvalkitError(f"expected a {kind} name in UTF-8, found {text!a}; rename it")


_UNCLOSED = {
    "unexpected end of data": "a quote that is not closed",
    f"field larger than field limit ({csv.field_size_limit()})": "a field of more than "
    f"{counted(csv.field_size_limit(), 'character')}, as where a quote is not closed",
}
"""What a quote that is not closed makes of all that follows, by the sentence of the csv module."""


def parse_csv(text: str, columns: Sequence[Column], source: Source) -> pd.DataFrame:
    """Return the table that a text holds, typed; other columns are left out.

    Args:
        text: CSV with a line of heads.
        columns: that are read.
        source: where the text is from.

    Raises:
        EvalkitError: columns are missing, or a line or value cannot be read.
    """
    if len(text) >= LARGE:
        table = parse_plain(text, columns)
        if table is not None:
            return table
    lines: list[list[str]] = []
    try:
        for line in csv.reader(io.StringIO(text, newline=""), strict=True):
            lines.append(line)
    except csv.Error as error:
        wanted = f"CSV in line {source.above + len(lines) + 1} of {source.path}"
        raise source.error(wanted, _UNCLOSED.get(str(error), str(error))) from error
    head = lines[0] if lines else []
    missing = [column.name for column in columns if not column.later and column.name not in head]
    if missing:
        names = ",".join(column.name for column in columns if not column.later)
        raise source.error(f"the columns {names} in {source.path}", f"no {', '.join(missing)}")
    numbered = list(enumerate(lines[1:], start=source.above + 2))
    for number, line in numbered:
        if len(line) != len(head):
            expected = f"{counted(len(head), 'field')} in line {number} of {source.path}"
            raise source.error(expected, str(len(line)))
    table = {}
    for column in columns:
        place = head.index(column.name) if column.name in head else None
        values = []
        for number, line in numbered:
            field = "" if place is None else line[place]
            try:
                values.append(column.value(field))
            except (ValueError, KeyError):
                where = f"{column.expected} as {column.name} in line {number} of {source.path}"
                raise source.error(where, f"'{shortened(field)}'") from None
        table[column.name] = pd.Series(values, dtype=column.dtype)
    return pd.DataFrame(table)


def parse_plain(text: str, columns: Sequence[Column]) -> pd.DataFrame | None:
    """Return the table that a text holds, as :func:`parse_csv` does, without a loop over lines.

    Args:
        text: CSV with a line of heads.
        columns: that are read.

    Returns:
        The table; None where a text is quoted or something is not as it should be, which
        :func:`parse_csv` reads, or tells in a sentence.
    """
    if any(sign in text for sign in '"\r\0') or not text.endswith("\n"):
        return None
    head = text[: text.index("\n")].split(",")
    named = {column.name: column for column in columns if column.name in head}
    count = text.count("\n") - 1
    if (
        len(set(head)) < len(head)
        or any(column.name not in head and not column.later for column in columns)
        or text.count(",") != (len(head) - 1) * (count + 1)
    ):
        return None
    floats = [name for name, column in named.items() if column.kind is float]
    try:
        read = pd.read_csv(
            io.StringIO(text),
            usecols=list(named),
            dtype={name: "float64" if name in floats else "category" for name in named},
            keep_default_na=False,
            na_values={name: [""] for name in named},
            **_EXACT,
            skip_blank_lines=False,
            engine="c",
        )
        if len(read) != count:
            return None
        table = {
            column.name: _plain_column(column, read.get(column.name), count) for column in columns
        }
    except (ValueError, KeyError, pd.errors.ParserError):
        return None
    return pd.DataFrame(table)


def _plain_column(column: Column, read: pd.Series | None, count: int) -> pd.Series:
    """Return a column as it is typed.

    Raises:
        ValueError, KeyError: a text stands for no value of it.
    """
    if read is None:
        return pd.Series([column.value("")] * count, dtype=column.dtype)
    if column.kind is float:
        values = read.to_numpy()
        wrong = ((values < 0) & (not column.signed)) | (column.needed & ~np.isfinite(values))
        if wrong.any():
            raise ValueError(column.name)
        return pd.Series(values, dtype=column.dtype)
    codes = read.cat.codes.to_numpy()
    texts = [str(text) for text in read.cat.categories]
    if (codes < 0).any():
        texts.append("")
    values = pd.Series([column.value(text) for text in texts], dtype=column.dtype)
    return values.take(np.where(codes < 0, len(texts) - 1, codes)).reset_index(drop=True)
