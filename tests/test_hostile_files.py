"""Files that another program or a person damaged: one sentence, exit status 2, and never a hang."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from evalkit.cli import main
from evalkit.errors import EvalkitError
from evalkit.storage.json_files import printable, read_object
from evalkit.storage.lost_rows import lost_rows
from evalkit.storage.run_folder import read_provenance, read_run, repair
from evalkit.study.notes import notes_on
from tests.support.folders import BUNDLED
from tests.support.refusals import sentence
from tests.support.written_runs import cell, score_row, write_run

HOSTILE = {
    "401 digits": ("1" + "0" * 400, "whole numbers of at most 64 bits"),
    "5000 digits": ("9" * 5000, "expected JSON"),
    "nesting": ("[" * 900 + "]" * 900, "levels of nesting"),
    "deep nesting": ("[" * 100_000 + "]" * 100_000, "expected"),
    "a lone surrogate": ('"\\ud800"', "texts that are Unicode"),
    "a surrogate as a name": ('{"\\ud800": 1}', "texts that are Unicode"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [score_row("sgd", 1.0), score_row("ief", 0.5)]
    provenance = {
        "evalkit": "0.1.0",
        "task": "digits-mlp",
        "settings": {"methods": ["sgd", "ief"], "dampings": [1e-12], "batches": 3},
        "checkpoints": [{"name": "first", "sha256": "ab" * 32}],
    }
    cells = [cell("first", 0, 0.0, batch, rows) for batch in range(3)]
    return write_run(tmp_path_factory.mktemp("hostile") / "run", cells, provenance)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.mark.parametrize("kind", HOSTILE)
def test_entries_that_cannot_be_calculated_with(
    kind: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value, expected = HOSTILE[kind]
    record = copy / "run.json"
    content = json.loads(record.read_text()) | {"task": "@@"}
    record.write_text(json.dumps(content).replace('"@@"', value))
    with pytest.raises(EvalkitError, match=expected):
        read_object(record)
    assert expected in sentence(capsys, ["report", str(copy)])
    folder = copy.parent / "checkpoints"
    shutil.copytree(BUNDLED, folder)
    manifest = folder / "trajectory.json"
    content = json.loads(manifest.read_text())
    for key in ("recipe", "settings"):
        manifest.write_text(json.dumps(content | {key: "@@"}).replace('"@@"', value))
        found = sentence(capsys, ["score", str(folder), "--out", str(copy.parent / "other")])
        assert expected in found
        assert not (copy.parent / "other").exists()


def test_what_a_file_may_hold(tmp_path: Path) -> None:
    path, content = tmp_path / "plain.json", {"a": [2**63, -1.5, None, {"ü": "😀"}], "b": True}
    path.write_text(json.dumps(content))
    assert read_object(path) == content


@pytest.mark.parametrize("name", ["scores.csv", "batches.csv", "run.json"])
def test_a_pipe_in_place_of_a_file_is_no_wait(
    name: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert "found a pipe" in sentence(capsys, ["report", str(copy)])
    with pytest.raises(EvalkitError, match="found a pipe"):
        _ = repair(copy), read_provenance(copy)


def test_a_pipe_in_place_of_a_baseline(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(copy / "baseline")
    arguments = ["check", str(copy), "--baseline", str(copy / "baseline")]
    record = json.loads((copy / "run.json").read_text())
    record["settings"] |= {"seed": 0, "batch_size": 8, "likelihood": "gaussian", "dtype": "float32"}
    record |= {"versions": {"torch": "2"}, "finished": "now"}
    (copy / "run.json").write_text(json.dumps(record))
    assert "found a pipe" in sentence(capsys, arguments)
    assert "found a pipe" in sentence(capsys, [*arguments, "--update-baseline"])


@pytest.mark.parametrize("value", ["1e308", "inf", "5e-324", "1e150"])
def test_numbers_at_the_end_of_the_range_are_drawn(value: str, copy: Path) -> None:
    for name, old in (("scores.csv", ",1.0,0.5,1.0,"), ("batches.csv", ",0.5,10.0,5.0,")):
        path, places = copy / name, old.split(",")
        places[2] = value
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, ",".join(places)))
    assert main(["report", str(copy)]) == 0


def test_a_size_below_zero_is_no_size(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "scores.csv"
    path.write_text(path.read_text().replace(",1e-12,1.0,0.5,", ",1e-12,1.0,-1e308,"))
    assert "a number of at least 0 as ratio in line 3" in sentence(capsys, ["report", str(copy)])


def test_a_lost_row_is_told_by_the_report(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "scores.csv"
    path.write_text("".join(path.read_text().splitlines(True)[:-1]))
    assert main(["report", str(copy)]) == 0
    assert "warning: 1 of 6 rows is missing" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["settings", "checkpoints"])
@pytest.mark.parametrize("value", [None, 5, "x", [[]], {"methods": 5, "batches": "x"}])
def test_a_record_of_another_form_is_still_reported(key: str, value: object, copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text()) | {key: value, "finished": "now"}
    (copy / "run.json").write_text(json.dumps(record))
    found = read_run(copy)
    assert lost_rows(found) == ""
    assert notes_on(found.provenance) == ()


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_paths_that_are_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"r\xff")
    small = ["--methods", "sgd,ief", "--batches", "3", "--batch-size", "8"]
    run = tmp_path / name
    assert main(["score", str(BUNDLED), *small, "--out", str(run)]) == 0
    assert "r\\udcff" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    baseline = str(tmp_path / os.fsdecode(b"b\xff.csv"))
    assert main(["check", str(run), "--baseline", baseline, "--update-baseline"]) == 0
    assert main(["check", str(run), "--baseline", baseline]) == 0
    assert printable(name) == "r\\udcff"
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(next(BUNDLED.glob("*.safetensors")), folder / f"step-1{name}.safetensors")
    capsys.readouterr()
    arguments = ["score", str(folder), "--task", "digits-mlp", "--out", str(tmp_path / "other")]
    assert "UTF-8" in sentence(capsys, arguments)
    assert not (tmp_path / "other").exists()
