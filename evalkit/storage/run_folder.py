"""The RUN folder: two tables and a provenance record, and how they survive an interruption.

``scores.csv`` has a row per checkpoint, batch, method and damping; ``batches.csv`` a row per
checkpoint and batch; ``run.json`` says how they were made. A pair (checkpoint, batch) is a cell.
A cell is finished exactly when its row in ``batches.csv`` is whole, since that row is written last.
Methods and dampings that a run is extended by are rows that finished cells lack. While several
processes write, their rows are in parts (:mod:`~evalkit.storage.parts`); whoever reads a RUN has
the union. ``failures.csv`` has a row per cell that could not be scored, and why.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from evalkit.errors import EvalkitError
from evalkit.notebooks import facts_html
from evalkit.storage.columns import Table
from evalkit.storage.files import make_folder, unwritable, write_atomically
from evalkit.storage.parquet import is_parquet, parquet_path, read_own, table_bytes
from evalkit.storage.parts import (
    Tables,
    assemble,
    failed,
    of_cells,
    part_folders,
    placed,
    read_union,
    rewrite,
)
from evalkit.storage.run_json import (
    PROVENANCE_FILE,
    asked_for,
    places_of,
    read_provenance,
    update_provenance,
    wants_parquet,
    write_provenance,
)
from evalkit.storage.tables import (
    BATCHES_FILE,
    FAILURES_FILE,
    SCORES_FILE,
    csv_head,
    csv_rows,
    empty_table,
    read_table,
)

__all__ = [
    "PROVENANCE_FILE",
    "Run",
    "asked_for",
    "read_provenance",
    "read_run",
    "update_provenance",
]

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
        failures: a row per checkpoint and batch that failed and has not been scored since.
    """

    folder: Path
    scores: pd.DataFrame
    batches: pd.DataFrame
    provenance: Mapping[str, Any]
    failures: pd.DataFrame = field(default_factory=partial(empty_table, FAILURES_FILE))

    def _repr_html_(self) -> str:
        """Return what a notebook shows; numbers are for tables of :mod:`evalkit.results`."""
        facts = {
            "task": self.provenance.get("task"),
            "methods": list(dict.fromkeys(map(str, self.scores["method"]))),
            "dampings": [float(value) for value in self.scores["damping"].unique()],
            "checkpoints": self.batches["checkpoint"].nunique(),
            "batches per checkpoint": self.batches["batch"].nunique(),
            "samples per batch": int(self.batches["num_samples"].max()),
            "batches that failed": len(self.failures) or None,
            "finished": self.provenance.get("finished") is not None,
        }
        return facts_html(f"Run {self.folder.name}", facts)


def create_run(folder: str | os.PathLike[str], provenance: Mapping[str, Any]) -> None:
    """Make ``folder`` a RUN without rows; ``run.json`` comes last, so it stands for a whole start.

    Args:
        folder: made when missing.
        provenance: what ``run.json`` says; numbers that are not finite become null.

    Raises:
        EvalkitError: the folder holds a run or other tables already, or cannot be written.
    """
    folder, parquet = Path(folder), wants_parquet(provenance)
    blank = {
        (parquet_path(folder / name) if parquet else folder / name): table_bytes(
            name, parquet=parquet
        )
        for name in (SCORES_FILE, BATCHES_FILE)
    }
    tables = [folder / name for name in (SCORES_FILE, BATCHES_FILE)]
    for path in (folder / PROVENANCE_FILE, *tables, *map(parquet_path, tables)):
        # Tables without rows are what a start leaves that stopped before run.json.
        if path.exists() and path.read_bytes() != blank.get(path, b""):
            raise EvalkitError(
                f"expected a folder without a run, found {path}; "
                "name another folder, or remove this one"
            )
    make_folder(folder)
    for path, content in blank.items():
        write_atomically(path, content)
    write_provenance(folder, provenance)


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
    _append({Path(folder) / name: text for name, text in texts.items()})


def append_failure(folder: str | os.PathLike[str], failure: Table) -> None:
    """Append a row of a cell that could not be scored.

    Args:
        folder: a RUN, or a part of one.
        failure: columns as the fields of ``Cell`` and ``Failure``.

    Raises:
        EvalkitError: other columns, or a file that cannot be written.
    """
    text, path = csv_rows(failure, FAILURES_FILE), Path(folder) / FAILURES_FILE
    if not path.exists():
        write_atomically(path, csv_head(FAILURES_FILE))
    _append({path: text})


def _append(texts: Mapping[Path, str]) -> None:
    """Append whole lines to files, one after the other; all of them, or none where one fails."""
    before: dict[Path, int] = {}
    try:
        for path, text in texts.items():
            with path.open("ab") as file:
                before[path] = file.tell()
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        for written, size in before.items():
            with contextlib.suppress(OSError):
                os.truncate(written, size)
        raise unwritable(path, error) from error


def finished_cells(folder: str | os.PathLike[str]) -> set[tuple[str, int]]:
    """Return the (checkpoint, batch) pairs whose rows are complete."""
    return cells(read_union(Path(folder), {}).batches)


def drawn_hashes(folder: str | os.PathLike[str]) -> dict[int, str]:
    """Return the SHA-256 of the data of each batch that was drawn, where ``batches.csv`` has it."""
    return hashes_in(read_union(Path(folder), {}).batches)


def hashes_in(batches: pd.DataFrame) -> dict[int, str]:
    """Return the SHA-256 of the data of each batch, where its rows have it."""
    drawn = batches.dropna(subset=["data_sha256"]).drop_duplicates("batch", keep="last")
    return {
        int(batch): str(digest)
        for batch, digest in zip(drawn["batch"], drawn["data_sha256"], strict=True)
    }


def place_checkpoints(
    folder: str | os.PathLike[str], places: Mapping[str, tuple[int, float]]
) -> None:
    """Give rows the step and the progress that their checkpoint has among more checkpoints.

    Rows of parts have them wherever they are read, once ``run.json`` lists them.

    Args:
        folder: a RUN.
        places: step and progress by the name of a checkpoint; others stay as they are.
    """
    folder = Path(folder)
    scores, batches = (read_own(folder / name) for name in (SCORES_FILE, BATCHES_FILE))
    rewrite(folder, placed(scores, places), placed(batches, places))


def read_tables(folder: str | os.PathLike[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scores and batches of the finished cells, none where there is none."""
    found = read_all(folder)
    return found.scores, found.batches


def read_all(folder: str | os.PathLike[str]) -> Tables:
    """Return the tables of the finished cells and of what failed, none where there is none."""
    folder = Path(folder)
    if not (folder / PROVENANCE_FILE).exists():
        return read_union(folder, {})
    provenance = read_provenance(folder)
    found = read_union(folder, places_of(provenance))
    return replace(found, failures=failed(found, *asked_for(provenance)))


def repair(folder: str | os.PathLike[str]) -> None:
    """Drop what an interruption left half-written: a torn last line, scores without a batch row.

    Finished cells keep their rows as they are. A whole folder is not touched. What parts hold is
    put into the tables: nobody else may write meanwhile.
    """
    folder = Path(folder)
    other_form = is_parquet(folder / SCORES_FILE) != wants_parquet(read_provenance(folder))
    if part_folders(folder) or other_form:
        sort_tables(folder)
        return
    batches = read_own(folder / BATCHES_FILE)
    rewrite(folder, of_cells(read_own(folder / SCORES_FILE), batches), batches)
    _whole_lines(folder)


def repair_part(folder: str | os.PathLike[str], finished: pd.DataFrame) -> None:
    """Drop what an interruption left half-written in the part of a run that one process writes.

    Args:
        folder: the part.
        finished: batches of the whole run: its cells may have further rows in the part.
    """
    folder = Path(folder)
    batches = read_table(folder / BATCHES_FILE)
    rewrite(folder, of_cells(read_table(folder / SCORES_FILE), finished), batches)
    _whole_lines(folder)


def _whole_lines(folder: Path) -> None:
    """Drop the torn last line of the failures in a folder."""
    path = folder / FAILURES_FILE
    if path.exists():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            write_atomically(path, whole or csv_head(FAILURES_FILE))


def drop_after(folder: str | os.PathLike[str], step: int) -> None:
    """Drop the rows of checkpoints after ``step``: a training that goes on there makes others."""
    folder = Path(folder)
    tables = [read_own(folder / name) for name in (SCORES_FILE, BATCHES_FILE)]
    rewrite(folder, *(frame[frame["step"] <= step] for frame in tables))


def sort_tables(folder: str | os.PathLike[str]) -> None:
    """Order rows by step, batch, method and damping, and drop repeated ones.

    Methods and dampings go as ``run.json`` lists them. A run that was interrupted and resumed, or
    extended, or written by several processes, ends with the same bytes as one that was not. Nobody
    else may write meanwhile.
    """
    folder = Path(folder)
    provenance = read_provenance(folder)
    asked, places = asked_for(provenance), places_of(provenance)
    assemble(folder, *asked, places, wants_parquet(provenance))


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Return the finished cells of a RUN; the folder itself is left as it is.

    Raises:
        EvalkitError: a missing folder, file or column, an unreadable table, or no finished cell.
    """
    folder = Path(folder)
    provenance = read_provenance(folder)
    tables = read_all(folder)
    scores, batches = tables.scores, tables.batches
    for name, frame in ((BATCHES_FILE, batches), (SCORES_FILE, scores)):
        if frame.empty:
            raise EvalkitError(
                f"expected at least one finished batch in {folder / name}, found no rows; "
                "run the same 'evalkit score' command to the end first"
            )
    return Run(folder, scores, batches, provenance, tables.failures)


def failure_counts(failures: pd.DataFrame) -> dict[str, int]:
    """Return how many cells failed by reason, the most first."""
    counts = failures["reason"].value_counts()
    return {str(reason): int(count) for reason, count in counts.items()}


def cells(frame: pd.DataFrame) -> set[tuple[str, int]]:
    """Return the (checkpoint, batch) pairs that a table has rows of."""
    return set(zip(frame["checkpoint"].astype(str), frame["batch"].astype(int), strict=True))
