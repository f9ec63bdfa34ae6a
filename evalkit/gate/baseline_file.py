"""The file of a baseline: a small sorted text that reads well in a diff.

Lines ``# key: value`` say how the scores were made; CSV follows, a row per checkpoint, method,
damping and batch. Reading a baseline runs no code.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evalkit.doubts import MARKED, UNEQUAL
from evalkit.errors import EvalkitError, shortened
from evalkit.settings import Settings
from evalkit.storage.columns import Column, Source, csv_line, parse_csv
from evalkit.storage.files import check_regular
from evalkit.storage.tables import TABLES

FORMAT = "1"
IDENTITY = ("task", "likelihood", "seed", "batch size", "others", "past tasks")
"""What two runs must share before their scores can be compared; past tasks where both have some."""
NO_PAST = "none"
DEFAULTS = {"others": Settings.others, "past tasks": NO_PAST}
"""What is written where it is something else alone, as earlier versions knew nothing of it."""
INFORMATION = ("dtype", "evalkit", "torch")
"""What may differ: whether it matters shows in the numbers."""
KEY = ("checkpoint", "method", "damping", "batch")
NUMBERS = ("ratio", "efficiency", "loss")
COLUMNS = (*KEY, "ratio", "efficiency", "descends", "loss")
ERROR = "error"
"""The stated error of gamma, a last column that files of earlier versions lack."""
_DESCENDS = {"yes": True, "no": False}
_OF_RUNS = {column.name: column for name in TABLES for column in TABLES[name]}
_OWN = Column("descends", bool, needed=True, flags=_DESCENDS)
_TABLE = tuple(_OF_RUNS.get(name, _OWN) for name in (*COLUMNS, ERROR))
_MAKE_AGAIN = "make it again with `update_baseline`"
_NAME = "evalkit baseline"
_NAME_ANOTHER = "name a file that `update_baseline` has written"


@dataclass(frozen=True)
class Baseline:
    """The scores of a run, and what they were made with.

    Attributes:
        made_with: the entries of ``IDENTITY`` and ``INFORMATION``, as text.
        checkpoints: SHA-256 by name, in the order of training.
        rows: a row per checkpoint, method, damping and batch, with ratio and efficiency of the
            scores, descends (slope > 0), loss, the mean loss of the batch, error, the stated one of
            gamma, NaN where there is none, noise, the part of it that is not the distance that a
            solver left, and impossible, whether gamma is one that it cannot be.
        remarks: sentences on what is marked, empty for what comes from a file.
    """

    made_with: Mapping[str, str]
    checkpoints: Mapping[str, str]
    rows: pd.DataFrame
    remarks: tuple[str, ...] = ()


def render(baseline: Baseline) -> str:
    """Return a baseline as text: sorted, numbers in eight digits, errors in two."""
    lines = [f"# {_NAME}: {FORMAT}"]
    lines += [
        f"# {name}: {value}"
        for name, value in baseline.made_with.items()
        if DEFAULTS.get(name) != value
    ]
    lines += [f"# checkpoint: {sha} {name}" for name, sha in baseline.checkpoints.items()]
    order = {name: place for place, name in enumerate(baseline.checkpoints)}
    rows = baseline.rows.assign(place=baseline.rows["checkpoint"].map(order))
    rows = rows.sort_values(["place", "method", "damping", "batch"], kind="stable")
    words = {flag: word for word, flag in _DESCENDS.items()}
    text = {name: rows[name].map(_digits) for name in NUMBERS}
    text |= {"damping": rows["damping"].map(repr), "descends": rows["descends"].map(words)}
    text |= {ERROR: rows[ERROR].map(lambda value: "" if math.isnan(value) else f"{value:.2g}")}
    columns = [*COLUMNS, ERROR] if rows[ERROR].notna().any() else list(COLUMNS)
    written = rows.assign(**text)[columns]
    body = written.to_csv(index=False, header=False, lineterminator="\n")
    return "\n".join(lines) + "\n" + csv_line(columns) + body


def _digits(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.8g}"


def check_replaceable(text: str, path: Path) -> None:
    """Refuse to write a baseline over the table of a run.

    Args:
        text: what the file holds; empty where there is none.
        path: of the file.

    Raises:
        EvalkitError: it is a table.
    """
    head = text.partition("\n")[0]
    if _is_table(head):
        raise EvalkitError(
            f"expected a baseline or no file at {path}, found a table, '{shortened(head)}'; name "
            "another file"
        )


def _is_table(head: str) -> bool:
    """Return whether a first line is that of a table of a run: a baseline begins with comments."""
    return KEY[0] in head.strip().split(",")


def read_baseline(path: str | os.PathLike[str]) -> Baseline:
    """Return the baseline in a file.

    Raises:
        EvalkitError: there is no file, or it is not a baseline.
    """
    path = Path(path)
    check_regular(path, "check the path")
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise EvalkitError(
            f"expected a baseline at {path}, found no file; make one with `update_baseline`"
        ) from error
    except OSError as error:
        raise EvalkitError(
            f"expected a baseline at {path}, found: {error.strerror}; check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise _unreadable("text in UTF-8", path, "other bytes") from error
    return parse(text, path)


def parse(text: str, path: Path) -> Baseline:
    """Return the baseline that a text holds.

    Args:
        text: as :func:`render` writes it.
        path: how errors call the text.

    Raises:
        EvalkitError: the text is not a baseline.
    """
    lines = text.split("\n")
    height = next((place for place, line in enumerate(lines) if line[:1] != "#"), len(lines))
    made_with: dict[str, str] = dict(DEFAULTS)
    checkpoints: dict[str, str] = {}
    for number, line in enumerate(lines[:height], start=1):
        key, colon, value = line[1:].strip().partition(": ")
        if not colon:
            raise _unreadable(f"'# key: value' in line {number}", path, repr(line))
        if key == "checkpoint":
            sha, _, name = value.partition(" ")
            checkpoints[name] = sha
        else:
            made_with[key] = value
    if made_with.pop(_NAME, None) != FORMAT:
        said = f"'# {_NAME}: {FORMAT}' as the first line of the baseline {path}, found "
        advice = _NAME_ANOTHER if _is_table(lines[0]) else _MAKE_AGAIN
        raise EvalkitError(f"expected {said}{shortened(repr(lines[0]))}; {advice}")
    for name in IDENTITY + INFORMATION:
        if name not in made_with:
            raise _unreadable(f"a line '# {name}: ...'", path, "none")
    rows = _rows("\n".join(lines[height:]), path, height)
    for name in rows["checkpoint"].unique():
        if name not in checkpoints:
            raise _unreadable(f"a line '# checkpoint: SHA-256 {shortened(name)}'", path, "none")
    return Baseline(made_with, checkpoints, rows)


def _rows(text: str, path: Path, height: int) -> pd.DataFrame:
    """Return the CSV below a header of so many lines, typed."""
    table = parse_csv(text, _TABLE, Source(path, _MAKE_AGAIN, height))
    repeated = table.duplicated(list(KEY))
    if repeated.any():
        number = height + 2 + int(repeated.argmax())
        raise _unreadable("each row once", path, f"line {number} again")
    if table.empty:
        raise _unreadable("rows", path, "none")
    above = table["efficiency"] - 1 > UNEQUAL + table[ERROR].fillna(MARKED)
    return table.assign(noise=table[ERROR], impossible=above)


def _unreadable(wanted: str, path: Path, found: str) -> EvalkitError:
    return EvalkitError(
        f"expected {wanted} in the baseline {path}, found {found[:80]}; {_MAKE_AGAIN}"
    )
