"""Tables as Parquet: the values of the CSVs, wherever a RUN is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evalkit.cli import main
from evalkit.storage import locks
from evalkit.storage.parquet import table_bytes
from evalkit.storage.run_folder import read_run
from evalkit.study.store import Store
from tests.support.drawn_units import left, provenance, rows_of, store, units
from tests.support.refusals import refusal
from tests.support.small_studies import study
from tests.support.written_runs import cell, ngd_row, score_row, write_run

pytest.importorskip("pyarrow")


def parquet_store(run: Path, writer: str | None = None) -> Store:
    one = Store(run, {**provenance(), "tables": "parquet"}, writer, lambda: None)
    if one.exists:
        one.hold()
    return one


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def assert_same(run: Path, other: Path) -> None:
    for name in ("scores", "batches", "failures"):
        one, two = getattr(read_run(run), name), getattr(read_run(other), name)
        pd.testing.assert_frame_equal(one, two, check_exact=True)


@pytest.mark.parametrize("writers", [(None,), ("rank-0000", "rank-0001")])
def test_rows_are_those_of_the_csvs_while_they_are_written_and_after(
    tmp_path: Path, writers: tuple[str | None, ...]
) -> None:
    run, other = tmp_path / "run", tmp_path / "csv"
    several = [parquet_store(run, name) for name in writers]
    csv = store(other)
    for number, unit in enumerate(units()):
        several[number % len(several)].put(unit, rows_of(unit))
        csv.put(unit, rows_of(unit))
        if number == 1:
            assert len(read_run(run).scores) == len(read_run(other).scores) == 8
    for one in (*several, csv):
        one.close(1.0)
    assert names(run) == ["batches.parquet", "run.json", "scores.parquet"]
    assert_same(run, other)


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    for name in ("run", "whole"):
        one = parquet_store(tmp_path / name)
        for unit in units():
            one.put(unit, rows_of(unit))
            if name == "run":
                for lock in one._writer._locks:  # killed
                    lock.release()
                one = parquet_store(tmp_path / name)
        assert left(one) == ()
        one.close(1.0)
    for name in ("scores.parquet", "batches.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("value", [0.1 + 0.2, 5e-324, 1.7976931348623157e308, math.inf])
def test_values_and_types_come_back_exactly(tmp_path: Path, value: float) -> None:
    rows = [score_row("sgd", 1.0) | {"gamma": value, "slope": -value}, ngd_row(0.5)]
    rows[0]["ratio"] = math.nan
    folder = write_run(tmp_path / "run", [cell("Größe", 3, 1 / 3, 0, rows, gram_rank=None)])
    before = read_run(folder)
    for name in ("scores", "batches"):
        content = table_bytes(f"{name}.csv", getattr(before, name), parquet=True)
        (folder / f"{name}.parquet").write_bytes(content)
        (folder / f"{name}.csv").unlink()
    after = read_run(folder)
    pd.testing.assert_frame_equal(before.scores, after.scores, check_exact=True)
    pd.testing.assert_frame_equal(before.batches, after.batches, check_exact=True)


def test_a_run_is_put_into_the_other_form_and_extended(tmp_path: Path) -> None:
    first = study(tmp_path)
    study(tmp_path, tables="parquet")
    assert names(tmp_path / "run") == ["batches.parquet", "run.json", "scores.parquet"]
    study(tmp_path, steps=(1, 2, 3))
    assert names(tmp_path / "run") == ["batches.parquet", "run.json", "scores.parquet"]
    assert len(read_run(tmp_path / "run").batches) == 6
    for command in ("report", "status"):
        assert main([command, str(tmp_path / "run")]) == 0
    extended = study(tmp_path, steps=(1, 2, 3), tables="csv")
    assert (tmp_path / "run" / "scores.csv").exists()
    assert not (tmp_path / "run" / "scores.parquet").exists()
    whole = tmp_path / "whole"
    whole.mkdir()
    assert study(whole, steps=(1, 2, 3)) == extended
    assert first != extended


def changed(name: str, change: Any) -> Any:
    def apply(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        place = table.schema.get_field_index(name)
        values = change(pa, table.column(name))
        table = table.drop([name]) if values is None else table.set_column(place, name, values)
        pq.write_table(table, path)

    return apply


BAD = {
    "torn": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "found"),
    "no parquet": (lambda path: path.write_bytes(b"checkpoint,step"), "found"),
    "empty": (lambda path: path.write_bytes(b""), "found"),
    "no column": (changed("ratio", lambda pa, v: None), "found no ratio"),
    "texts": (changed("gamma", lambda pa, v: v.cast(pa.string())), "found string as gamma"),
    "negative": (
        changed("gamma", lambda pa, v: pa.array([-1.0] * len(v))),
        "a number out of range as gamma",
    ),
    "no step": (
        changed("step", lambda pa, v: pa.array([None] * len(v), pa.int64())),
        "no step in some rows",
    ),
    "lines": (
        changed("checkpoint", lambda pa, v: pa.array(["a\nb"] * len(v))),
        "a checkpoint of several lines",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, kind: str) -> None:
    spoil, expected = BAD[kind]
    run = tmp_path / "run"
    one = parquet_store(run)
    for unit in units():
        one.put(unit, rows_of(unit))
    one.close(1.0)
    spoil(run / "scores.parquet")
    text = refusal(lambda: read_run(run))
    assert expected in text
    assert str(run / "scores.parquet") in text
    assert "score again into a new folder" in text


def test_without_pyarrow_the_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr("evalkit.extras.importlib.import_module", absent)
    text = refusal(lambda: study(tmp_path, tables="parquet"))
    assert "expected the package pyarrow for tables as Parquet" in text
    assert "pip install" in text
    assert not (tmp_path / "run").exists()
