"""The tables of a RUN as Parquet files, for studies whose CSVs would be large.

A table is ``scores.parquet`` in place of ``scores.csv``, with the same columns and the same values:
floats are kept as they are. Nothing is appended to it: rows are in parts until it is written.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evalkit.counts import counted
from evalkit.errors import EvalkitError
from evalkit.extras import required
from evalkit.storage.columns import Column, check_name
from evalkit.storage.files import check_regular, write_atomically
from evalkit.storage.tables import SCORE_AGAIN, TABLES, csv_head, csv_rows, empty_table, read_table

_FEWEST_BYTES = 1
"""Of a row, in files of more than ``_MANY``: what claims more rows than that is not read."""
_MANY = 10_000_000


def parquet_path(path: Path) -> Path:
    """Return where a table lies as Parquet, by where it lies as CSV."""
    return path.with_suffix(".parquet")


def is_parquet(path: Path) -> bool:
    """Return whether a table lies as Parquet."""
    return parquet_path(path).exists()


def own_path(path: Path) -> Path:
    """Return where a table lies in the form that it has, by where it lies as CSV."""
    return parquet_path(path) if is_parquet(path) else path


def read_own(path: Path) -> pd.DataFrame:
    """Return a table of a RUN, typed, in the form that it lies in.

    Args:
        path: where it lies as CSV.

    Raises:
        EvalkitError: no file, missing columns, or a value that is not of its column.
    """
    return _read(parquet_path(path), path.name) if is_parquet(path) else read_table(path)


def write_own(path: Path, frame: pd.DataFrame, parquet: bool) -> None:
    """Write a table of a RUN, whole or not at all, and remove it in its other form.

    A file that holds the same already is left alone.

    Args:
        path: where it lies as CSV.
        frame: its rows.
        parquet: whether it is written as Parquet.

    Raises:
        EvalkitError: it cannot be written, or pyarrow is not installed.
    """
    target, other = (parquet_path(path), path) if parquet else (path, parquet_path(path))
    content = table_bytes(path.name, frame, parquet)
    if not target.exists() or content != target.read_bytes():
        write_atomically(target, content)
    other.unlink(missing_ok=True)


def table_bytes(name: str, frame: pd.DataFrame | None = None, parquet: bool = False) -> bytes:
    """Return the content of the file of a table.

    Args:
        name: of its CSV.
        frame: its rows; None for none.
        parquet: whether it is Parquet.
    """
    if not parquet:
        rows = "" if frame is None else csv_rows(frame, name)
        return (csv_head(name) + rows).encode("utf-8")
    frame = empty_table(name) if frame is None else frame
    pa = _pyarrow("pyarrow")
    arrays = [_array(pa, frame[column.name], column) for column in TABLES[name]]
    table = pa.Table.from_arrays(arrays, names=[column.name for column in TABLES[name]])
    content = io.BytesIO()
    _pyarrow("pyarrow.parquet").write_table(table, content, compression="zstd")
    return content.getvalue()


def _pyarrow(name: str) -> Any:
    return required(name, "tables as Parquet", "export")


def _array(pa: Any, values: pd.Series, column: Column) -> Any:
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if column.kind is float:
        return pa.array(values.to_numpy("float64"), kinds[float])
    for text in values.dropna().unique() if column.kind is str else ():
        check_name(column.name, text)
    plain = [None if value is pd.NA or value != value else value for value in values.to_list()]
    return pa.array(plain, kinds[column.kind])


def _read(path: Path, name: str) -> pd.DataFrame:
    check_regular(path, SCORE_AGAIN)
    module, columns = _pyarrow("pyarrow.parquet"), TABLES[name]
    try:
        file = module.ParquetFile(path)
        rows, size = file.metadata.num_rows, path.stat().st_size
        if rows > _MANY and rows > size // _FEWEST_BYTES:
            raise _error(path, f"{counted(rows, 'row')} in {counted(size, 'byte')}")
        held = set(file.schema_arrow.names)
        missing = [one.name for one in columns if one.name not in held and not one.later]
        if missing:
            raise _error(path, f"no {', '.join(missing)}")
        table = file.read(columns=[one.name for one in columns if one.name in held])
        frame = {
            one.name: _column(table.column(one.name), one)
            if one.name in held
            else pd.Series([one.value("")] * rows, dtype=one.dtype)
            for one in columns
        }
    except EvalkitError:
        raise
    except Exception as error:  # of pyarrow, which raises errors of many kinds on other files
        raise _error(path, " ".join(str(error).split()) or type(error).__name__) from error
    return pd.DataFrame(frame)


def _column(values: Any, column: Column) -> pd.Series:
    """Return a column, typed.

    Raises:
        ValueError: a value is not of its kind, or out of its range.
    """
    kinds: dict[type, Sequence[str]] = {
        str: ("string",),
        int: ("int64",),
        float: ("double",),
        bool: ("bool",),
    }
    if str(values.type) not in kinds[column.kind]:
        raise ValueError(f"{values.type} as {column.name}")
    if column.kind is str:
        # Names are few: as Python's own texts, as those of a CSV are.
        encoded = values.combine_chunks().dictionary_encode()
        encoded = encoded.chunk(0) if hasattr(encoded, "chunk") else encoded
        texts = [*encoded.dictionary.to_pylist(), None if column.later else ""]
        if any(text is not None and ("\n" in text or "\r" in text) for text in texts):
            raise ValueError(f"a {column.name} of several lines")
        codes = encoded.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False)
        return pd.Series(texts, dtype=column.dtype).take(codes).reset_index(drop=True)
    if column.needed and values.null_count:
        raise ValueError(f"no {column.name} in some rows")
    if column.kind is float or column.needed:
        found = pd.Series(values.to_numpy(), dtype=column.dtype)
    else:
        found = pd.Series(values.to_pylist(), dtype=column.dtype)
    if column.kind is not bool:
        numbers = found.dropna().to_numpy()
        if (not column.signed and (numbers < 0).any()) or (
            column.needed and not np.isfinite(found.to_numpy()).all()
        ):
            raise ValueError(f"a number out of range as {column.name}")
    return found


def _error(path: Path, found: str) -> EvalkitError:
    return EvalkitError(f"expected a table of a run in {path}, found {found}; {SCORE_AGAIN}")
