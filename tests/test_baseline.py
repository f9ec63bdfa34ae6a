"""The file of a baseline: readable, settled, written on request only, and refused when bad."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evalkit.gate.baseline import baseline_of, update_baseline
from evalkit.gate.baseline_file import COLUMNS, read_baseline, render
from evalkit.storage.run_folder import Run, read_provenance
from tests.support.folders import sentence
from tests.support.gates import Made

HEADER = """\
# evalkit baseline: 1
# task: digits-mlp
# likelihood: categorical
# seed: 0
# batch size: 8
# dtype: float32
# evalkit: 0.1.0
# torch: 2.13.0
# checkpoint: ABAB zero
# checkpoint: ABAB last
checkpoint,method,damping,batch,ratio,efficiency,descends,loss
""".replace("ABAB", "ab" * 32)
ROWS = """\
zero,ef,1e-12,0,0.33333333,1.5,yes,0.5
zero,ef,1e-12,1,inf,0,no,0.5
zero,ef,1e-12,2,,,yes,0.5
"""
EXPECTED = HEADER + ROWS


def made(*ratios: float) -> Made:
    return Made({"ef": ratios or (1 / 3, math.inf, math.nan)}, ("zero", "last"), sgd=False)


def test_the_text_of_a_baseline(tmp_path: Path) -> None:
    path = tmp_path / "new" / "baseline.csv"
    run = made().write(tmp_path / "run")
    diff = update_baseline(path, run)
    text = path.read_text(encoding="utf-8")
    assert text == EXPECTED + ROWS.replace("zero", "last")
    assert [line[1:] for line in diff.splitlines()[3:]] == text.splitlines()
    assert render(read_baseline(path)) == text


def test_rows_are_sorted_whatever_the_order_of_the_run(tmp_path: Path) -> None:
    ratios = {"sf": (0.5, 0.5), "ef": (0.5, 0.5)}
    run = Made(ratios, ("b", "a"), dampings=(1e-3, 1e-12)).write(tmp_path / "run")
    shuffled = Run(run.folder, run.scores[::-1], run.batches, run.provenance)
    lines = render(baseline_of(shuffled)).splitlines()
    rows = [line.split(",")[:4] for line in lines if not line.startswith("#")][1:]
    keys = [(name == "a", method, float(damping), batch) for name, method, damping, batch in rows]
    assert keys == sorted(keys)
    assert len(keys) == 2 * 3 * 2 * 2


def test_an_update_changes_the_lines_that_changed(tmp_path: Path) -> None:
    path = tmp_path / "baseline.csv"
    update_baseline(path, made(0.5, 0.6, 0.7).write(tmp_path / "first"))
    before = path.read_text(encoding="utf-8")
    assert update_baseline(path, made(0.500001, 0.6, 0.7).write(tmp_path / "rounded")) == ""
    assert path.read_text(encoding="utf-8") == before
    diff = update_baseline(path, made(0.5, 0.7, 0.7).write(tmp_path / "second")).splitlines()
    changed = [line for line in diff[2:] if line[0] in "+-"]
    assert changed == [
        "-zero,ef,1e-12,1,0.6,0.83333333,yes,0.5",
        "+zero,ef,1e-12,1,0.7,0.71428571,yes,0.5",
        "-last,ef,1e-12,1,0.6,0.83333333,yes,0.5",
        "+last,ef,1e-12,1,0.7,0.71428571,yes,0.5",
    ]


def test_an_unreadable_baseline_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "baseline.csv"
    path.write_bytes(b"\xff\xfe nonsense")
    update_baseline(path, made(0.5, 0.6, 0.7).write(tmp_path / "run"))
    assert len(read_baseline(path).rows) == 6


def test_the_table_of_a_run_is_not_replaced(tmp_path: Path) -> None:
    run = made(0.5, 0.6, 0.7).write(tmp_path / "run")
    path = tmp_path / "run" / "scores.csv"
    before = path.read_bytes()
    assert "name another file" in sentence(lambda: update_baseline(path, run))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda run: replace(run, provenance={**run.provenance, "finished": None}), "unfinished"),
        (lambda run: replace(run, provenance={**run.provenance, "checkpoints": 3}), "hash"),
        (lambda run: replace(run, provenance={**run.provenance, "settings": []}), "'likelihood'"),
        (lambda run: replace(run, provenance={**run.provenance, "task": "a\nb"}), "one line"),
        (lambda run: replace(run, scores=run.scores[run.scores["batch"] == 0]), "`batches=5`"),
    ],
)
def test_a_run_that_cannot_serve_is_refused_and_nothing_written(
    tmp_path: Path, change: Callable[[Run], Run], hint: str
) -> None:
    run = change(made(0.5, 0.6, 0.7).write(tmp_path / "run"))
    path = tmp_path / "folder" / "baseline.csv"
    assert hint in sentence(lambda: update_baseline(path, run))
    assert not path.parent.exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = made(0.5, 0.6, 0.7).write(tmp_path / "run")
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "baseline.csv"):
        assert str(path) in sentence(lambda path=path: update_baseline(path, run))
    assert read_provenance(tmp_path / "run")["task"] == "digits-mlp"


ROW = "zero,ef,1e-12,0,0.33333333,1.5,yes,0.5\n"
BAD: dict[str, tuple[Callable[[str], str], str]] = {
    "empty": (lambda text: "", "# evalkit baseline: 1"),
    "something else": (lambda text: "checkpoint,step\na,1\n", "# evalkit baseline: 1"),
    "a later format": (lambda text: text.replace("baseline: 1", "baseline: 2"), "baseline: 1"),
    "no seed": (lambda text: text.replace("# seed: 0\n", ""), "# seed"),
    "a comment": (lambda text: text.replace("# seed: 0", "# seed"), "line 4"),
    "no hash": (lambda text: text.replace("# checkpoint", "# point"), "SHA-256 zero"),
    "other columns": (lambda text: text.replace("descends,", ""), "the columns checkpoint,"),
    "a field too few": (lambda text: text.replace(",yes,0.5\n", "\n", 1), "8 fields in line 12"),
    "no number": (lambda text: text.replace("0.33333333", "high", 1), "ratio in line 12"),
    "no batch": (lambda text: text.replace("1e-12,0", "1e-12,", 1), "batch in line 12"),
    "nan damping": (lambda text: text.replace("1e-12", "nan", 1), "damping in line 12"),
    "batch below 0": (lambda text: text.replace("1e-12,0", "1e-12,-1", 1), "batch in line 12"),
    "no flag": (lambda text: text.replace("yes", "maybe", 1), "descends in line 12"),
    "a row twice": (lambda text: text.replace(ROW, ROW * 2), "line 13 again"),
    "no rows": (lambda text: text[: text.index("zero,ef")], "rows"),
    "a quote too many": (
        lambda text: text.replace("zero,ef", '"zero,ef', 1),
        "CSV in line 12 of",
    ),
    "an open quote": (
        lambda text: text.replace(ROW, ROW.replace("zero", '"zero')),
        "found a quote that is not closed;",
    ),
    "an open quote before much": (
        lambda text: text.replace(ROW, ROW.replace("zero", '"zero')) + "x" * 140_000,
        "as where a quote is not closed",
    ),
    "a table of scores": (
        lambda text: 'checkpoint,step\n"a,1\n',
        "a file that `update_baseline` has written",
    ),
    "a merge conflict": (lambda text: text.replace(ROW, "<<<<<<< ours\n" + ROW), "line 12"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_baseline_is_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.csv"
    change, hint = BAD[name]
    path.write_text(change(EXPECTED), encoding="utf-8")
    found = sentence(lambda: read_baseline(path))
    assert hint in found
    assert str(path) in found
    assert "`update_baseline`" in found


def test_files_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"# evalkit baseline: 1\n\xff")
    for name, hint in (("missing", "no file"), (".", "directory"), ("bytes", "UTF-8")):
        assert hint in sentence(lambda name=name: read_baseline(tmp_path / name))


def test_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "baseline.csv"
    path.write_bytes(EXPECTED.replace("\n", "\r\n").encode())
    found = read_baseline(path)
    assert found.made_with["seed"] == "0"
    assert tuple(found.rows.columns) == (*COLUMNS, "error", "noise", "impossible")
    assert found.rows["descends"].tolist() == [True, False, True]


def test_awkward_names_come_back(tmp_path: Path) -> None:
    names = ("#1", "a,b", 'say "x"', "a b", "Größe")
    path = tmp_path / "baseline.csv"
    expected = Made({"mine:x=1": (0.5, 0.6, 0.7)}, names)
    update_baseline(path, expected.write(tmp_path / "run"))
    found = read_baseline(path)
    assert tuple(found.checkpoints) == names
    assert tuple(dict.fromkeys(found.rows["checkpoint"])) == names
