"""The RUN folder: exact values, interruptions, and what cannot be read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from evalkit.errors import EvalkitError
from evalkit.storage.run_folder import (
    append_rows,
    create_run,
    finished_cells,
    read_provenance,
    read_run,
    repair,
    sort_tables,
    update_provenance,
)
from tests.support.written_runs import PROVENANCE, cell, ngd_row, score_row, write_run


def three_cells() -> list[tuple]:
    rows = [score_row("sgd", 1.0), score_row("ef", 1 / 3), ngd_row(0.6)]
    return [
        cell("first", 0, 0.0, 0, rows),
        cell("first", 0, 0.0, 1, rows),
        cell("last", 7, 1.0, 0, rows),
    ]


def tables(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "scores.csv").read_bytes(), (folder / "batches.csv").read_bytes()


def test_the_headers_are_those_of_the_contract(tmp_path: Path) -> None:
    create_run(tmp_path, {})
    scores, batches = tables(tmp_path)
    assert scores.decode() == (
        "checkpoint,step,progress,batch,method,damping,gamma,ratio,efficiency,fisher_norm,slope,"
        "norm,cosine_sgd,iterations,relative_residual,converged,solver,error,dtype\n"
    )
    assert batches.decode() == (
        "checkpoint,step,progress,batch,num_samples,loss,imbalance,logit_imbalance,"
        "target_probability,gamma_floor,gram_rank,data_sha256,micro_batch_size\n"
    )


@pytest.mark.parametrize("name", ["007", "NA", "nan", "a,b", 'say "x"', " padded ", "Größe"])
def test_names_come_back_as_text(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, [cell(name, 0, 0.0, 0, [score_row("sgd", 1.0)])])
    assert read_run(tmp_path).scores["checkpoint"].tolist() == [name]
    assert finished_cells(tmp_path) == {(name, 0)}


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-300, 5e-324, 1.7976931348623157e308, math.inf])
def test_numbers_come_back_exactly(tmp_path: Path, value: float) -> None:
    rows = [score_row("sgd", 1.0) | {"gamma": value, "slope": -value}]
    write_run(tmp_path, [cell("c", 3, 1 / 3, 0, rows, loss=value)])
    run = read_run(tmp_path)
    assert run.scores["gamma"].tolist() == [value]
    assert run.scores["slope"].tolist() == [-value]
    assert run.scores["progress"].tolist() == [1 / 3]
    assert run.batches["loss"].tolist() == [value]


def test_missing_values_are_empty_and_flags_are_words(tmp_path: Path) -> None:
    rows = [score_row("sgd", 1.0), ngd_row(0.6), score_row("ef", math.nan)]
    write_run(tmp_path, [cell("c", 3, 1.0, 0, rows, gram_rank=None)])
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[1].endswith(",0.5,,,,,,")
    assert lines[2].endswith(",0.5,12,0.0001,True,,,")
    scores = read_run(tmp_path).scores
    assert scores["iterations"].isna().tolist() == [True, False, True]
    assert scores["iterations"][1] == 12
    assert scores["converged"].fillna(False).tolist() == [False, True, False]
    assert math.isnan(scores["ratio"][2])
    assert read_run(tmp_path).batches["gram_rank"].isna().all()


def test_provenance_is_strict_json_and_can_be_completed(tmp_path: Path) -> None:
    create_run(tmp_path, PROVENANCE | {"finished": None, "checkpoints": [{"loss": math.nan}]})
    update_provenance(tmp_path, finished="now", seconds=2.5)
    text = (tmp_path / "run.json").read_text()
    found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert found["checkpoints"] == [{"loss": None}]
    assert (found["finished"], found["seconds"], found["task"]) == ("now", 2.5, "digits-mlp")
    assert read_provenance(tmp_path) == found
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "batches.csv",
        "run.json",
        "scores.csv",
    ]


def test_a_second_start_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, three_cells())
    before = tables(tmp_path)
    with pytest.raises(EvalkitError, match=r"run\.json"):
        create_run(tmp_path, {})
    (tmp_path / "run.json").unlink()
    with pytest.raises(EvalkitError, match=r"scores\.csv"):
        create_run(tmp_path, {})
    assert tables(tmp_path) == before


def test_a_start_that_stopped_before_run_json_can_be_repeated(tmp_path: Path) -> None:
    create_run(tmp_path, PROVENANCE)
    (tmp_path / "run.json").unlink()
    create_run(tmp_path, PROVENANCE)
    assert read_provenance(tmp_path) == PROVENANCE


def test_wherever_it_stops_a_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    cells = three_cells()
    write_run(tmp_path / "whole", cells)
    whole = tables(tmp_path / "whole")
    write_run(tmp_path / "two", cells[:2])
    two = tables(tmp_path / "two")
    stops = [(whole[0][:size], two[1]) for size in range(len(two[0]), len(whole[0]) + 1)]
    stops += [(whole[0], whole[1][:size]) for size in range(len(two[1]), len(whole[1]))]
    folder = tmp_path / "stopped"
    create_run(folder, PROVENANCE)
    for scores, batches in stops:
        (folder / "scores.csv").write_bytes(scores)
        (folder / "batches.csv").write_bytes(batches)
        repair(folder)
        assert tables(folder) == two
        assert finished_cells(folder) == {("first", 0), ("first", 1)}
    append_rows(folder, *cells[2])
    assert tables(folder) == whole


def test_repair_leaves_a_whole_run_alone(tmp_path: Path) -> None:
    write_run(tmp_path, three_cells())
    before = [(path.stat().st_ino, path.read_bytes()) for path in sorted(tmp_path.iterdir())]
    repair(tmp_path)
    sort_tables(tmp_path)
    assert [(p.stat().st_ino, p.read_bytes()) for p in sorted(tmp_path.iterdir())] == before


def test_rows_end_in_order_without_repeats(tmp_path: Path) -> None:
    cells = three_cells()
    write_run(tmp_path / "straight", cells)
    write_run(tmp_path / "mixed", [cells[2], cells[1], cells[0], cells[1]])
    sort_tables(tmp_path / "mixed")
    assert tables(tmp_path / "mixed") == tables(tmp_path / "straight")


def test_a_reader_sees_finished_cells_only_and_writes_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, three_cells())
    path = tmp_path / "batches.csv"
    path.write_bytes(path.read_bytes()[:-1])
    before = tables(tmp_path)
    run = read_run(tmp_path)
    assert set(run.scores["checkpoint"]) == {"first"}
    assert (len(run.scores), len(run.batches)) == (6, 2)
    assert tables(tmp_path) == before


def test_rows_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    create_run(tmp_path, PROVENANCE)
    before = tables(tmp_path)
    scores, batches = three_cells()[0]
    with pytest.raises(EvalkitError, match="gram_rank"):
        append_rows(tmp_path, scores, batches.drop(columns="gram_rank"))
    with pytest.raises(EvalkitError, match="one line"):
        append_rows(tmp_path, scores.assign(checkpoint="a\nb"), batches)
    assert tables(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(EvalkitError, match="taken"):
        create_run(taken, PROVENANCE)
    with pytest.raises(EvalkitError, match="taken"):
        create_run(taken / "run", PROVENANCE)


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_text(change((folder / name).read_text()))

    return apply


BAD = {
    "no folder": (lambda f: [p.unlink() for p in f.iterdir()] and f.rmdir(), "evalkit score"),
    "no run.json": (lambda f: (f / "run.json").unlink(), "run.json"),
    "no scores": (lambda f: (f / "scores.csv").unlink(), "scores.csv"),
    "no batches": (lambda f: (f / "batches.csv").unlink(), "batches.csv"),
    "broken JSON": (edit("run.json", lambda text: text[:20]), "run.json"),
    "JSON list": (edit("run.json", lambda text: "[]"), "found list"),
    "empty table": (edit("scores.csv", lambda text: ""), "found no checkpoint, step"),
    "missing column": (edit("scores.csv", lambda t: t.replace("ratio,", "", 1)), "found no ratio"),
    "short line": (edit("scores.csv", lambda t: t.replace(",0.5,", ",", 1)), "line 2"),
    "a word": (edit("scores.csv", lambda t: t.replace(",2.0,", ",two,", 1)), "found 'two'"),
    "a half step": (edit("batches.csv", lambda t: t.replace("first,0,", "first,0.5,", 1)), "step"),
    "no progress": (edit("batches.csv", lambda t: t.replace(",0.0,", ",,", 1)), "progress"),
    "a bad flag": (edit("scores.csv", lambda t: t.replace("True", "yes", 1)), "True or False"),
    "no rows": (edit("batches.csv", lambda t: t.splitlines()[0] + "\n"), "at least one finished"),
    "not text": (lambda f: (f / "scores.csv").write_bytes(b"\xff\xfe\n"), "scores.csv"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, kind: str) -> None:
    spoil, expected = BAD[kind]
    folder = write_run(tmp_path / "run", three_cells())
    spoil(folder)
    with pytest.raises(EvalkitError) as caught:
        read_run(folder)
    message = str(caught.value)
    assert expected in message
    assert str(folder) in message
    assert message.startswith("expected ")
    assert "\n" not in message
    assert "; " in message
