"""Tables of many rows are read column by column, to the same values and types as line by line."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pandas as pd
import pytest

from evalkit.errors import EvalkitError
from evalkit.storage import columns
from evalkit.storage.columns import Source, csv_line, parse_csv, parse_plain
from evalkit.storage.tables import SCORES_FILE, TABLES, csv_head, csv_rows, names_of

SCORES = TABLES[SCORES_FILE]
NUMBERS = ("", "0.0", "0.1", "1e-300", "5e-324", "inf", "1.7976931348623157e308", "2")
TEXTS = {
    "checkpoint": ("a", "007", "NA", "nan", " padded ", "Größe", "null", "1e5"),
    "step": ("0", "7", "9223372036854775807", "1_000"),
    "progress": ("0.0", "0.3333333333333333", "1"),
    "batch": ("0", "12"),
    "method": ("sgd", "sf:labels_per_sample=4", ""),
    "damping": ("1e-12", "0.0", "3"),
    "slope": ("-1.5", "-inf", "", "0.1"),
    "cosine_sgd": ("-0.5", ""),
    "iterations": ("", "12"),
    "converged": ("", "True", "False"),
    "solver": ("", "cg", "NA"),
    "dtype": ("", "float32"),
}
BAD = {
    "step": ("", "1.0", "-1", "x", "9223372036854775808", "1e3"),
    "damping": ("", "inf", "nan", "-1"),
    "gamma": ("-1.0", "two", "0x10", "1,5"),
    "iterations": ("1.5", "-2", "True"),
    "converged": ("yes", "1"),
}


def text_of(draw: random.Random, rows: int = 40, later: bool = True) -> str:
    heads = [column.name for column in SCORES if later or not column.later]
    lines = [csv_line(heads)]
    for _ in range(rows):
        lines.append(csv_line([draw.choice(TEXTS.get(name, NUMBERS)) for name in heads]))
    return "".join(lines)


@pytest.fixture
def by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LARGE", math.inf)


@pytest.mark.usefixtures("by_line")
@pytest.mark.parametrize("seed", range(6))
def test_both_ways_read_the_same(seed: int) -> None:
    text = text_of(random.Random(seed), later=seed % 2 == 0)
    plain = parse_plain(text, SCORES)
    assert plain is not None
    slow = parse_csv(text, SCORES, Source(Path("scores.csv"), "stop"))
    pd.testing.assert_frame_equal(plain, slow, check_exact=True)
    for name in ("slope", "gamma"):  # to the last bit, the sign of zero included
        assert plain[name].to_numpy().tobytes() == slow[name].to_numpy().tobytes()
    assert csv_rows(plain, SCORES_FILE) == csv_rows(slow, SCORES_FILE)


@pytest.mark.parametrize("column", BAD)
def test_what_cannot_be_read_is_told_as_line_by_line(
    column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in BAD[column]:
        lines = text_of(random.Random(0)).splitlines(keepends=True)
        fields = lines[3].split(",")
        fields[names_of(SCORES_FILE).index(column)] = value
        lines[3] = ",".join(fields)
        text = "".join(lines)
        assert parse_plain(text, SCORES) is None
        monkeypatch.setattr(columns, "LARGE", 0)
        with pytest.raises(EvalkitError) as caught:
            parse_csv(text, SCORES, Source(Path("scores.csv"), "stop"))
        assert "line 4 of scores.csv" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("ratio", "gamma", 1),
        lambda text: text.replace("ratio,", "", 1),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\n\n", 5),
        lambda text: text.replace("sgd", '"sgd"'),
        lambda text: text[:-1],
        lambda text: text + "a,b\n",
        lambda text: text.replace("sgd", "s\0gd"),
        lambda text: text + ",\n" * 3,
        lambda text: "",
    ],
)
def test_what_is_not_plain_is_left_to_the_other_way(change: object) -> None:
    assert callable(change)
    assert parse_plain(change(text_of(random.Random(0))), SCORES) is None


def test_a_head_alone_is_a_table_without_rows() -> None:
    found = parse_plain(csv_head(SCORES_FILE), SCORES)
    assert found is not None
    assert [str(found[c.name].dtype) for c in SCORES] == [
        str(pd.Series([], dtype=c.dtype).dtype) for c in SCORES
    ]
