"""The RUN folder: two tables and a provenance record, and how they survive an interruption.

``scores.csv`` has a row per checkpoint, batch, method and damping; ``batches.csv`` a row per
checkpoint and batch; ``run.json`` says how they were made. A pair (checkpoint, batch) is a cell.
A cell is finished exactly when its row in ``batches.csv`` is whole, since that row is written last.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from evalkit.errors import EvalkitError

SCORES_FILE = "scores.csv"
BATCHES_FILE = "batches.csv"
PROVENANCE_FILE = "run.json"
FIGURES_FOLDER = "figures"
REPORT_FILE = "report.html"

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
)
BATCH_COLUMNS = (
    "num_samples",
    "loss",
    "imbalance",
    "logit_imbalance",
    "target_probability",
    "gamma_floor",
    "gram_rank",
)
_TABLES = {
    SCORES_FILE: KEY_COLUMNS + SCORE_COLUMNS,
    BATCHES_FILE: KEY_COLUMNS + BATCH_COLUMNS,
}
_TEXT = frozenset({"checkpoint", "method"})
_WHOLE = frozenset({"step", "batch", "num_samples", "gram_rank", "iterations"})
_FLAG = frozenset({"converged"})
_REQUIRED = frozenset({*KEY_COLUMNS, "method", "damping", "num_samples"})
_SCORE_AGAIN = "score again into a new folder with 'evalkit score'"


@dataclass(frozen=True)
class Run:
    """What a RUN folder holds, finished cells only.

    Attributes:
        folder: where it lies.
        scores: a row per checkpoint, batch, method and damping.
        batches: a row per checkpoint and batch.
        provenance: settings, versions, seeds, checkpoint hashes.
    """

    folder: Path
    scores: pd.DataFrame
    batches: pd.DataFrame
    provenance: Mapping[str, Any]


def create_run(folder: str | os.PathLike[str], provenance: Mapping[str, Any]) -> None:
    """Make ``folder`` a RUN without rows; ``run.json`` comes last, so it stands for a whole start.

    Args:
        folder: made when missing.
        provenance: what ``run.json`` says; numbers that are not finite become null.

    Raises:
        EvalkitError: the folder holds a run or other tables already, or cannot be written.
    """
    folder = Path(folder)
    headers = {name: _csv_line(columns) for name, columns in _TABLES.items()}
    for name in (PROVENANCE_FILE, *headers):
        path = folder / name
        # Bare headers are what a start leaves that stopped before run.json.
        if path.exists() and path.read_bytes() != headers.get(name, "").encode("utf-8"):
            raise EvalkitError(
                f"expected a folder without a run, found {path}; "
                "name another folder, or remove this one"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvalkitError(
            f"expected a folder that can be made at {folder}, found: {error.strerror}; "
            "name another folder"
        ) from error
    for name, header in headers.items():
        write_atomically(folder / name, header)
    write_atomically(folder / PROVENANCE_FILE, _json(provenance))


def update_provenance(folder: str | os.PathLike[str], **changes: Any) -> None:
    """Set top-level entries of ``run.json``, such as ``finished`` and ``seconds``, atomically."""
    merged = {**read_provenance(folder), **changes}
    write_atomically(Path(folder) / PROVENANCE_FILE, _json(merged))


def append_rows(
    folder: str | os.PathLike[str], scores: pd.DataFrame, batches: pd.DataFrame
) -> None:
    """Append the rows of whole cells: scores first, then the batch rows that finish them.

    After an interruption call ``repair`` before the first append.

    Args:
        folder: a RUN.
        scores: columns ``KEY_COLUMNS + SCORE_COLUMNS``.
        batches: columns ``KEY_COLUMNS + BATCH_COLUMNS``.

    Raises:
        EvalkitError: other columns, a line break in a name, or a file that cannot be written.
    """
    frames = {SCORES_FILE: scores, BATCHES_FILE: batches}
    texts = {name: _csv_rows(frame, name) for name, frame in frames.items()}
    for name, text in texts.items():
        path = Path(folder) / name
        try:
            with path.open("ab") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(path, error) from error


def finished_cells(folder: str | os.PathLike[str]) -> set[tuple[str, int]]:
    """Return the (checkpoint, batch) pairs whose rows are complete."""
    return _cells(_read_table(Path(folder) / BATCHES_FILE))


def repair(folder: str | os.PathLike[str]) -> None:
    """Drop what an interruption left half-written: a torn last line, scores without a batch row.

    Finished cells keep their rows as they are. A whole folder is not touched.
    """
    folder = Path(folder)
    batches = _read_table(folder / BATCHES_FILE)
    scores = _finished(_read_table(folder / SCORES_FILE), batches)
    _rewrite(folder, scores, batches)


def sort_tables(folder: str | os.PathLike[str]) -> None:
    """Order rows by step and batch, drop repeated ones; methods keep their order within a cell.

    A run that was interrupted and resumed ends with the same bytes as one that was not.
    """
    folder = Path(folder)
    order = ["step", "checkpoint", "batch"]
    cell = ["checkpoint", "batch"]
    scores = _read_table(folder / SCORES_FILE).sort_values(order, kind="stable")
    batches = _read_table(folder / BATCHES_FILE).sort_values(order, kind="stable")
    _rewrite(
        folder,
        scores.drop_duplicates([*cell, "method", "damping"]),
        batches.drop_duplicates(cell),
    )


def read_provenance(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what ``run.json`` says.

    Raises:
        EvalkitError: no such folder or file, or a file that is not a JSON object.
    """
    path = Path(folder) / PROVENANCE_FILE
    try:
        provenance = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise EvalkitError(f"expected JSON in {path}, found {error}; {_SCORE_AGAIN}") from error
    if not isinstance(provenance, dict):
        raise EvalkitError(
            f"expected a JSON object in {path}, found {type(provenance).__name__}; {_SCORE_AGAIN}"
        )
    return provenance


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Return the finished cells of a RUN; the folder itself is left as it is.

    Raises:
        EvalkitError: a missing folder, file or column, an unreadable table, or no finished cell.
    """
    folder = Path(folder)
    provenance = read_provenance(folder)
    batches = _read_table(folder / BATCHES_FILE)
    scores = _finished(_read_table(folder / SCORES_FILE), batches)
    for name, frame in ((BATCHES_FILE, batches), (SCORES_FILE, scores)):
        if frame.empty:
            raise EvalkitError(
                f"expected at least one finished batch in {folder / name}, found no rows; "
                "run the same 'evalkit score' command to the end first"
            )
    return Run(folder, scores, batches, provenance)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one whole.

    Raises:
        EvalkitError: the file cannot be written; the old one is kept.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _unwritable(path: Path, error: OSError) -> EvalkitError:
    return EvalkitError(
        f"expected a file that can be written at {path}, found: {error.strerror}; "
        "free the path or name another folder"
    )


def _rewrite(folder: Path, scores: pd.DataFrame, batches: pd.DataFrame) -> None:
    # Batches go first: a stop in between then leaves scores without a batch row, never a batch
    # row without its scores.
    for name, frame in ((BATCHES_FILE, batches), (SCORES_FILE, scores)):
        text = _csv_line(_TABLES[name]) + _csv_rows(frame, name)
        if text.encode("utf-8") != (folder / name).read_bytes():
            write_atomically(folder / name, text)


def _cells(frame: pd.DataFrame) -> set[tuple[str, int]]:
    return {(str(name), int(batch)) for name, batch in frame[["checkpoint", "batch"]].to_numpy()}


def _finished(scores: pd.DataFrame, batches: pd.DataFrame) -> pd.DataFrame:
    cells = _cells(batches)
    keys = zip(scores["checkpoint"], scores["batch"], strict=True)
    return scores[[(name, int(batch)) in cells for name, batch in keys]].reset_index(drop=True)


def _json(provenance: Mapping[str, Any]) -> str:
    return json.dumps(_plain(provenance), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: numpy scalars as numbers, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def _csv_line(fields: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue()


def _csv_rows(frame: pd.DataFrame, name: str) -> str:
    """Return the rows as text: floats in full precision, missing values empty."""
    columns = _TABLES[name]
    if set(frame.columns) != set(columns):
        difference = sorted(set(frame.columns) ^ set(columns))
        raise EvalkitError(
            f"expected the columns of {name}, found a difference in {', '.join(difference)}; "
            f"give exactly: {', '.join(columns)}"
        )
    typed = pd.DataFrame({column: _typed(frame[column]) for column in columns})
    for column in _TEXT & set(columns):
        broken = [text for text in typed[column] if "\n" in text or "\r" in text]
        if broken:
            raise EvalkitError(
                f"expected a {column} name of one line, found {broken[0]!r}; rename it"
            )
    return typed.to_csv(index=False, header=False, lineterminator="\n")


def _typed(column: pd.Series) -> pd.Series:
    """Return a column in the type its name calls for."""
    if column.name in _TEXT:
        return column.astype(str)
    if column.name in _FLAG:
        return column.astype("boolean")
    numbers = pd.to_numeric(column)
    return numbers.astype("Int64") if column.name in _WHOLE else numbers.astype("float64")


def _read_text(path: Path) -> str:
    if not path.parent.is_dir():
        raise EvalkitError(
            f"expected a run folder at {path.parent}, found none; make one with 'evalkit score'"
        )
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise EvalkitError(
            f"expected {path.name} in the run folder {path.parent}, found none; {_SCORE_AGAIN}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise EvalkitError(f"expected text in {path}, found {error}; {_SCORE_AGAIN}") from error


def _read_table(path: Path) -> pd.DataFrame:
    """Return the whole lines of a table, typed; a last line without an end is left out.

    Raises:
        EvalkitError: no file, missing columns, or a line or value that cannot be read.
    """
    columns = _TABLES[path.name]
    text = _read_text(path)
    try:
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    except csv.Error as error:
        raise EvalkitError(f"expected CSV in {path}, found: {error}; {_SCORE_AGAIN}") from error
    header = lines[0] if lines else []
    missing = [column for column in columns if column not in header]
    if missing:
        raise EvalkitError(
            f"expected the columns {', '.join(columns)} in {path}, "
            f"found no {', '.join(missing)}; {_SCORE_AGAIN}"
        )
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise EvalkitError(
                f"expected {len(header)} fields in line {number} of {path}, "
                f"found {len(line)}; {_SCORE_AGAIN}"
            )
    place = {column: header.index(column) for column in columns}
    return pd.DataFrame(
        {
            column: _parsed(column, [line[place[column]] for line in lines[1:]], path)
            for column in columns
        }
    )


def _number(text: str, column: str) -> float:
    value = float(text)
    if column in _REQUIRED and not math.isfinite(value):
        raise ValueError
    return value


def _parsed(column: str, texts: list[str], path: Path) -> pd.Series:
    """Return one column from its texts; Python's own float keeps every digit."""
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
                values.append(int(text) if column in _WHOLE else _number(text, column))
        except (ValueError, KeyError):
            kind = "True or False" if column in _FLAG else "a number"
            raise EvalkitError(
                f"expected {kind} as {column} in line {number} of {path}, "
                f"found '{text}'; {_SCORE_AGAIN}"
            ) from None
    if column in _FLAG:
        return pd.Series(values, dtype="boolean")
    if column in _WHOLE:
        return pd.Series(values, dtype="int64" if column in _REQUIRED else "Int64")
    return pd.Series(values, dtype="float64")
