"""The history of a training, ``history.csv``: a row for each step of the optimiser."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from evalkit.errors import EvalkitError
from evalkit.storage.columns import Source, columns_of, csv_line, csv_rows, parse_csv, table_of
from evalkit.storage.files import check_regular
from evalkit.storage.rows import TrainingStep

HISTORY_FILE = "history.csv"
COLUMNS = columns_of(TrainingStep)
_TRAIN_AGAIN = "train again into a new folder"


def history_head() -> str:
    """Return the first line of a history."""
    return csv_line([column.name for column in COLUMNS])


def history_line(row: TrainingStep) -> str:
    """Return the line of a step."""
    return csv_rows(table_of([row], TrainingStep), COLUMNS)


def read_history(folder: Path) -> pd.DataFrame:
    """Return the steps of a training, by rising step; a last line without an end is left out.

    Args:
        folder: of a training, finished or not.

    Raises:
        EvalkitError: there is no history, or it cannot be read.
    """
    path = folder / HISTORY_FILE
    check_regular(path, _TRAIN_AGAIN)
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise EvalkitError(
            f"expected {HISTORY_FILE} in '{folder}', found none; {_TRAIN_AGAIN}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise EvalkitError(f"expected text in '{path}', found {error}; {_TRAIN_AGAIN}") from error
    whole = text[: text.rfind("\n") + 1]
    return parse_csv(whole, COLUMNS, Source(path, _TRAIN_AGAIN))
