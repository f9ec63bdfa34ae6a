"""Numbers that are none, in tables of any age: counted and said wherever a mean is formed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from evalkit.cli import main
from evalkit.results.pairs import compare, parse_pair, statements
from evalkit.results.summaries import summarize
from evalkit.results.undefined import undefined_sentences
from evalkit.storage.lost_rows import failed_cells, lost_rows
from evalkit.storage.run_folder import append_failure, read_run, update_provenance
from tests.support.written_runs import PROVENANCE, cell, score_row, write_run

SETTINGS = {"methods": ["sgd", "ef"], "dampings": [1e-12], "seed": 0, "batches": 3}
WRITTEN = PROVENANCE | {"settings": SETTINGS, "finished": None}


def with_gaps(folder: Path) -> Path:
    """Write a run with a ratio that is no number, an infinite imbalance and a failed batch."""
    undefined = score_row("ef", 0.5) | {"gamma": math.nan, "ratio": math.nan, "efficiency": 0.1}
    rows = [score_row("sgd", 1.0), score_row("ef", 0.5)]
    write_run(
        folder,
        [
            cell("first", 0, 0.0, 0, rows, imbalance=math.inf),
            cell("first", 0, 0.0, 1, [score_row("sgd", 1.0), undefined]),
        ],
        WRITTEN,
    )
    row = {"checkpoint": ["first"], "step": [0], "progress": [0.0], "batch": [2]}
    append_failure(folder, {**row, "reason": ["expected memory, found none; buy some"]})
    return folder


def test_what_no_mean_holds_is_counted_and_said(tmp_path: Path) -> None:
    run = read_run(with_gaps(tmp_path / "run"))
    undefined, infinite = undefined_sentences(run)
    assert undefined == (
        "1 of 4 rows of EF has no gamma or ratio, the first in batch 1 of checkpoint 'first': "
        "means are over the others"
    )
    assert infinite == (
        "1 of 2 batches has an infinite imbalance, the first is batch 0 of checkpoint 'first': a "
        "mean that holds one is infinite"
    )
    summary = summarize(run).set_index("method")
    assert summary.loc["ef", "undefined"] == 1
    assert summary.loc["ef", "ratio_mean"] == 0.5
    failed = failed_cells(run)
    assert failed.startswith("1 batch was not scored, or not by every method")
    assert "1 x 'expected memory, found none; buy some'" in failed
    assert "the same 'evalkit score' command tries again" in failed
    assert lost_rows(run) == failed


def test_a_pair_says_which_part_of_the_batches_it_rests_on(tmp_path: Path) -> None:
    table = compare(read_run(with_gaps(tmp_path / "run")), [parse_pair("ef/sgd")])
    assert table[["batches", "left_out"]].values.tolist() == [[1, 1]]
    first, basis = statements(table)
    assert "1 of 2 batches)" in first
    assert "hold for the only row of the table (Holm)" in basis


def test_every_command_and_the_page_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_gaps(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    told = capsys.readouterr().err
    assert "evalkit: warning: 1 batch was not scored" in told
    assert "evalkit: note: 1 of 4 rows of EF has no gamma or ratio" in told
    page = (run / "report.html").read_text(encoding="utf-8")
    for sentence in ("1 batch was not scored", "an infinite imbalance", "1 of 4 rows"):
        assert sentence in page


def test_what_failed_is_told_where_a_baseline_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not that the run is to be finished: a start that goes on fails in the same batches."""
    run = with_gaps(tmp_path / "run")
    more = {"likelihood": "categorical", "dtype": "float32", "seed": 0, "batch_size": 8}
    update_provenance(run, settings=SETTINGS | more)
    line = ["check", str(run), "--baseline", str(tmp_path / "baseline.csv"), "--update-baseline"]
    assert main(line) == 2
    told = capsys.readouterr().err
    assert "1 batch was not scored" in told
    assert "unfinished" not in told


def test_whole_tables_say_nothing(tmp_path: Path) -> None:
    rows = [score_row("sgd", 1.0), score_row("ef", 0.5)]
    run = read_run(write_run(tmp_path / "run", [cell("first", 0, 0.0, 0, rows)], WRITTEN))
    assert undefined_sentences(run) == ()
    assert failed_cells(run) == ""
