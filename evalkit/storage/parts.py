"""The parts of a RUN: tables of each process that is not the only one to write, and their union.

``parts/<writer>/`` holds tables as the RUN itself does, of the same format and with the same rule:
a cell is finished exactly when its row in ``batches.csv`` is whole. What a RUN holds is the union
of its parts and its own tables. Parts are read first: rows are in the RUN's own tables before
their part is removed, so that whoever reads them in this order misses none.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evalkit.errors import EvalkitError
from evalkit.storage.files import PART, make_folder, write_atomically
from evalkit.storage.parquet import is_parquet, read_own, write_own
from evalkit.storage.tables import (
    BATCHES_FILE,
    FAILURES_FILE,
    SCORES_FILE,
    csv_head,
    read_if_there,
)

PARTS_FOLDER = "parts"
ALONE = "alone"
"""What a process is called that is the only one to write."""
FORMS = ("scores.parquet", "batches.parquet")
CELL = ["checkpoint", "batch"]
ROW = [*CELL, "method", "damping"]
"""What tells rows of batches and failures, and of scores, apart."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Tables:
    """What a RUN or a part of it holds.

    Attributes:
        scores: a row per checkpoint, batch, method and damping, of finished cells.
        batches: a row per checkpoint and batch.
        failures: a row per checkpoint and batch that failed.
    """

    scores: pd.DataFrame
    batches: pd.DataFrame
    failures: pd.DataFrame


def part_folder(run: Path, writer: str) -> Path:
    """Return where the part of a writer lies.

    Raises:
        EvalkitError: the name is not that of a folder.
    """
    if not _NAME.fullmatch(writer):
        raise EvalkitError(
            f"expected a writer named by letters, digits, '.', '_' and '-', found {writer!a}; "
            "name it as in rank-0003"
        )
    return run / PARTS_FOLDER / writer


def part_folders(run: Path) -> tuple[Path, ...]:
    """Return the parts of a RUN, in the order of their names."""
    try:
        found = sorted((run / PARTS_FOLDER).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple(path for path in found if _NAME.fullmatch(path.name) and path.is_dir())


def make_part(run: Path, writer: str) -> Path:
    """Return the folder of a part, with tables without rows where it has none."""
    folder = make_folder(part_folder(run, writer))
    for name in (SCORES_FILE, BATCHES_FILE):
        if not (folder / name).exists():
            write_atomically(folder / name, csv_head(name))
    return folder


Places = Mapping[str, tuple[int, float]]
"""Step and progress by the name of a checkpoint."""


def read_union(run: Path, places: Places) -> Tables:
    """Return what a RUN holds: finished cells, once each.

    Args:
        run: the folder of the run.
        places: of checkpoints, as rows of parts have them where checkpoints were added since.

    Raises:
        EvalkitError: the RUN's own tables are missing, or a table cannot be read.
    """
    parts = [_read(folder) for folder in part_folders(run)]
    # Batches first: a row of them that is there has its scores there.
    batches = read_own(run / BATCHES_FILE)
    own = Tables(read_own(run / SCORES_FILE), batches, read_if_there(run / FAILURES_FILE))
    if not parts:
        return Tables(of_cells(own.scores, batches), batches, own.failures)
    union = _union(own, parts)
    return Tables(*(placed(one, places) for one in (union.scores, union.batches, union.failures)))


def placed(frame: pd.DataFrame, places: Places) -> pd.DataFrame:
    """Return rows with the step and the progress that their checkpoint has; others stay."""
    columns = {}
    for at, column in enumerate(("step", "progress")):
        moved = frame["checkpoint"].map({key: place[at] for key, place in places.items()})
        columns[column] = moved.fillna(frame[column]).astype(frame[column].dtype)
    return frame.assign(**columns)


def of_cells(frame: pd.DataFrame, batches: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the cells that ``batches`` has a row of, numbered anew."""
    return frame[_is_of(frame, batches)].reset_index(drop=True)


def rewrite(folder: Path, scores: pd.DataFrame, batches: pd.DataFrame) -> None:
    """Replace the tables in a folder by fewer rows, or the same in another order.

    Batches go first: a stop in between then leaves scores without a batch row, never a batch row
    without its scores. Files that hold the same already are left alone.
    """
    for name, frame in ((BATCHES_FILE, batches), (SCORES_FILE, scores)):
        write_own(folder / name, frame, is_parquet(folder / name))


def assemble(
    run: Path,
    methods: Sequence[str],
    dampings: Sequence[float],
    places: Places,
    parquet: bool,
) -> None:
    """Put the rows of all parts into the RUN's own tables, in order, and remove the parts.

    Nobody may write rows meanwhile; others may read, or assemble. The tables are the same bytes
    whatever wrote the rows, and in whatever order.

    Args:
        run: the folder of the run.
        methods: in the order of their rows.
        dampings: in the order of their rows.
        places: of checkpoints.
        parquet: whether the RUN's own tables are Parquet.

    Raises:
        EvalkitError: a table cannot be read or written.
    """
    parts = part_folders(run)
    tables = in_order(read_union(run, places), methods, dampings)
    failures = failed(tables, methods, dampings)
    # Scores go first: a batch row that is there has its scores there. Until both are, the parts
    # hold the rows.
    write_own(run / SCORES_FILE, tables.scores, parquet)
    write_own(run / BATCHES_FILE, tables.batches, parquet)
    if len(failures):
        write_own(run / FAILURES_FILE, failures, parquet=False)
    else:
        (run / FAILURES_FILE).unlink(missing_ok=True)
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
    if parts:
        shutil.rmtree(run / PARTS_FOLDER, ignore_errors=True)
    for name in (SCORES_FILE, BATCHES_FILE, FAILURES_FILE, "run.json", "writer.json", *FORMS):
        for path in run.glob(f".{name}.*{PART}"):  # of a process that was killed
            path.unlink(missing_ok=True)


def in_order(tables: Tables, methods: Sequence[str], dampings: Sequence[float]) -> Tables:
    """Return tables by step, checkpoint, batch, method and damping, without repeats."""
    order = ["step", "checkpoint", "batch"]
    listed: dict[str, Mapping[object, int]] = {
        "method": {value: place for place, value in enumerate(methods)},
        "damping": {value: place for place, value in enumerate(dampings)},
    }
    scores = tables.scores.drop_duplicates(ROW)
    places = {
        f"{column}_place": scores[column].map(numbers).fillna(len(numbers)).astype(float)
        for column, numbers in listed.items()
    }
    keys = [*order, *places, "method", "damping"]
    scores = scores.assign(**places).sort_values(keys, kind="stable").drop(columns=list(places))
    batches, failures = (
        frame.drop_duplicates(CELL).sort_values(order, kind="stable").reset_index(drop=True)
        for frame in (tables.batches, tables.failures)
    )
    return Tables(scores.reset_index(drop=True), batches, failures)


def failed(tables: Tables, methods: Sequence[str], dampings: Sequence[float]) -> pd.DataFrame:
    """Return the failures of cells that lack a row which was asked for."""
    asked = tables.scores["method"].isin(list(methods)) & tables.scores["damping"].isin(
        list(dampings)
    )
    rows = tables.scores[asked].drop_duplicates(ROW)
    counts = rows.groupby(CELL, sort=False).size().rename("rows").reset_index()
    whole = counts[counts["rows"] >= len(set(methods)) * len(set(dampings))]
    whole = whole[_is_of(whole, tables.batches)]
    failures = tables.failures.drop_duplicates(CELL, keep="last")
    return failures[~_is_of(failures, whole)].reset_index(drop=True)


def _read(folder: Path) -> Tables:
    """Return the tables of a part; it may be removed meanwhile."""
    batches = read_if_there(folder / BATCHES_FILE)
    scores = read_if_there(folder / SCORES_FILE)
    return Tables(scores, batches, read_if_there(folder / FAILURES_FILE))


def _union(own: Tables, parts: Sequence[Tables]) -> Tables:
    """Return the finished cells of several tables.

    Rows whose cell is finished in the same table come before others of that cell, which an
    interruption left there, and the RUN's own before those of parts. Of failures the last of a
    part counts, which is later than any of the RUN's own.
    """
    every = (own, *parts)
    batches = pd.concat([one.batches for one in every], ignore_index=True).drop_duplicates(CELL)
    within = [_is_of(one.scores, one.batches) for one in every]
    whole = [one.scores[is_in] for one, is_in in zip(every, within, strict=True)]
    others = [one.scores[~is_in] for one, is_in in zip(every, within, strict=True)]
    scores = pd.concat([*whole, *others], ignore_index=True)
    scores = scores[_is_of(scores, batches)].drop_duplicates(ROW)
    failures = [one.failures.drop_duplicates(CELL, keep="last") for one in (*parts, own)]
    return Tables(
        scores.reset_index(drop=True),
        batches.reset_index(drop=True),
        pd.concat(failures, ignore_index=True).drop_duplicates(CELL),
    )


def _is_of(frame: pd.DataFrame, cells: pd.DataFrame) -> pd.Series:
    """Return which rows are of cells that another table has a row of."""
    known = cells[CELL].drop_duplicates().assign(known=True)
    found = frame[CELL].merge(known, on=CELL, how="left")["known"]
    return pd.Series(found.notna().to_numpy(), index=frame.index)
