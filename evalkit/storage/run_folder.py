"""The RUN folder: two tables and a provenance record, and how they survive an interruption.

``scores.csv`` has a row per checkpoint, batch, method and damping; ``batches.csv`` a row per
checkpoint and batch; ``run.json`` says how they were made. A pair (checkpoint, batch) is a cell.
A cell is finished exactly when its row in ``batches.csv`` is whole, since that row is written last.
Methods and dampings that a run is extended by are rows that finished cells lack.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from evalkit.errors import EvalkitError
from evalkit.storage.columns import Table
from evalkit.storage.files import make_folder, unwritable, write_atomically
from evalkit.storage.json_files import parse_object, printable
from evalkit.storage.tables import (
    BATCHES_FILE,
    SCORE_AGAIN,
    SCORES_FILE,
    TABLES,
    csv_head,
    csv_rows,
    read_table,
    read_text,
)

PROVENANCE_FILE = "run.json"
FIGURES_FOLDER = "figures"
REPORT_FILE = "report.html"


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
    headers = {name: csv_head(name) for name in TABLES}
    for name in (PROVENANCE_FILE, *headers):
        path = folder / name
        # Bare headers are what a start leaves that stopped before run.json.
        if path.exists() and path.read_bytes() != headers.get(name, "").encode("utf-8"):
            raise EvalkitError(
                f"expected a folder without a run, found {path}; "
                "name another folder, or remove this one"
            )
    make_folder(folder)
    for name, header in headers.items():
        write_atomically(folder / name, header)
    write_atomically(folder / PROVENANCE_FILE, _json(provenance))


def update_provenance(folder: str | os.PathLike[str], **changes: Any) -> None:
    """Set top-level entries of ``run.json``, such as ``finished`` and ``seconds``, atomically."""
    merged = {**read_provenance(folder), **changes}
    write_atomically(Path(folder) / PROVENANCE_FILE, _json(merged))


def append_rows(
    folder: str | os.PathLike[str], scores: Table, batches: Table | None = None
) -> None:
    """Append the rows of whole cells: scores first, then the batch rows that finish them.

    After an interruption call ``repair`` before the first append.

    Args:
        folder: a RUN.
        scores: columns as the fields of ``Cell`` and ``Score``.
        batches: columns as the fields of ``Cell`` and ``Batch``; None where they are there.

    Raises:
        EvalkitError: other columns, a line break in a name, or a file that cannot be written.
    """
    tables = {SCORES_FILE: scores} | ({} if batches is None else {BATCHES_FILE: batches})
    texts = {name: csv_rows(table, name) for name, table in tables.items()}
    for name, text in texts.items():
        path = Path(folder) / name
        try:
            with path.open("ab") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(path, error) from error


def finished_cells(folder: str | os.PathLike[str]) -> set[tuple[str, int]]:
    """Return the (checkpoint, batch) pairs whose rows are complete."""
    return _cells(read_table(Path(folder) / BATCHES_FILE))


def drawn_hashes(folder: str | os.PathLike[str]) -> dict[int, str]:
    """Return the SHA-256 of the data of each batch that was drawn, where ``batches.csv`` has it."""
    batches = read_table(Path(folder) / BATCHES_FILE).dropna(subset=["data_sha256"])
    return {
        int(batch): str(digest)
        for batch, digest in zip(batches["batch"], batches["data_sha256"], strict=True)
    }


def place_checkpoints(
    folder: str | os.PathLike[str], places: Mapping[str, tuple[int, float]]
) -> None:
    """Give rows the step and the progress that their checkpoint has among more checkpoints.

    Args:
        folder: a RUN.
        places: step and progress by the name of a checkpoint; others stay as they are.
    """
    folder = Path(folder)
    tables = []
    for name in (SCORES_FILE, BATCHES_FILE):
        frame = read_table(folder / name)
        for at, column in enumerate(("step", "progress")):
            moved = frame["checkpoint"].map({key: place[at] for key, place in places.items()})
            frame[column] = moved.fillna(frame[column]).astype(frame[column].dtype)
        tables.append(frame)
    _rewrite(folder, *tables)


def read_tables(folder: str | os.PathLike[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scores and batches of the finished cells, none where there is none."""
    batches = read_table(Path(folder) / BATCHES_FILE)
    return _finished(read_table(Path(folder) / SCORES_FILE), batches), batches


def repair(folder: str | os.PathLike[str]) -> None:
    """Drop what an interruption left half-written: a torn last line, scores without a batch row.

    Finished cells keep their rows as they are. A whole folder is not touched.
    """
    _rewrite(Path(folder), *read_tables(folder))


def drop_after(folder: str | os.PathLike[str], step: int) -> None:
    """Drop the rows of checkpoints after ``step``: a training that goes on there makes others."""
    folder = Path(folder)
    tables = [read_table(folder / name) for name in (SCORES_FILE, BATCHES_FILE)]
    _rewrite(folder, *(frame[frame["step"] <= step] for frame in tables))


def sort_tables(folder: str | os.PathLike[str]) -> None:
    """Order rows by step, batch, method and damping, and drop repeated ones.

    Methods and dampings go as ``run.json`` lists them. A run that was interrupted and resumed, or
    extended, ends with the same bytes as one that was not.
    """
    folder = Path(folder)
    order = ["step", "checkpoint", "batch"]
    cell = ["checkpoint", "batch"]
    asked = asked_for(read_provenance(folder))
    scores = read_table(folder / SCORES_FILE)
    places = {}
    for column, listed in zip(("method", "damping"), asked, strict=True):
        numbers = {value: place for place, value in enumerate(listed)}
        places[f"{column}_place"] = scores[column].map(numbers).fillna(len(numbers))
    scores = scores.assign(**places).sort_values([*order, *places], kind="stable")
    scores = scores.drop(columns=list(places))
    batches = read_table(folder / BATCHES_FILE).sort_values(order, kind="stable")
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
    return parse_object(read_text(path), path, SCORE_AGAIN)


def asked_for(provenance: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return the methods and the dampings that ``run.json`` lists, none where it lists none."""
    settings = provenance.get("settings")
    listed = settings if isinstance(settings, Mapping) else {}
    methods, dampings = listed.get("methods"), listed.get("dampings")
    return (
        tuple(name for name in methods if isinstance(name, str))
        if isinstance(methods, (list, tuple))
        else (),
        tuple(
            float(value)
            for value in dampings
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        )
        if isinstance(dampings, (list, tuple))
        else (),
    )


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Return the finished cells of a RUN; the folder itself is left as it is.

    Raises:
        EvalkitError: a missing folder, file or column, an unreadable table, or no finished cell.
    """
    folder = Path(folder)
    provenance = read_provenance(folder)
    scores, batches = read_tables(folder)
    for name, frame in ((BATCHES_FILE, batches), (SCORES_FILE, scores)):
        if frame.empty:
            raise EvalkitError(
                f"expected at least one finished batch in {folder / name}, found no rows; "
                "run the same 'evalkit score' command to the end first"
            )
    return Run(folder, scores, batches, provenance)


def _rewrite(folder: Path, scores: pd.DataFrame, batches: pd.DataFrame) -> None:
    # Batches go first: a stop in between then leaves scores without a batch row, never a batch
    # row without its scores.
    for name, frame in ((BATCHES_FILE, batches), (SCORES_FILE, scores)):
        text = csv_head(name) + csv_rows(frame, name)
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
        return {printable(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return printable(value)
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
