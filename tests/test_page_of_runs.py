"""The page of several runs: what it says of each, and that it is whole by itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from evalkit.names import MANY
from evalkit.report.page.cells import Table
from evalkit.report.page.runs import end_table, findings, run_keys, runs_pairs_table
from evalkit.report.writing import report_runs
from evalkit.results.pairs import compare_runs, named, parse_pair
from evalkit.storage.run_folder import Run, read_run
from tests.support.written_runs import PROVENANCE, cell, score_row, write_run

RUNS = MANY + 2
PAIRS = [parse_pair("ef/sgd"), parse_pair("ief/ef")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Runs in whose odd ones EF is worse than SGD and in whose even ones it is better."""
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for place in range(RUNS):
        ratio = 4.0 if place % 2 else 0.25
        cells = [
            cell(
                f"step-{step}",
                step,
                float(step),
                batch,
                [
                    score_row("sgd", 1.0),
                    score_row("ef", ratio * (1 + 1e-3 * batch)),
                    *([score_row("ief", 0.2)] if place else []),
                ],
            )
            for step in range(2)
            for batch in range(8)
        ]
        provenance = PROVENANCE | {"task": f"task <{place}>"}
        found.append(read_run(write_run(folder / str(place), cells, provenance)))
    return found


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_pairs_are_in_groups_and_counted(runs: list[Run]) -> None:
    table = compare_runs(runs, PAIRS[:1])
    assert findings(table) == [
        "EF / SGD: better in 5, worse in 5 of 10 runs at the last checkpoint."
    ]
    two = compare_runs(runs[1:], PAIRS)
    shown = runs_pairs_table(two, run_keys(list(named(runs[1:]))))
    assert shown.groups == ("EF / SGD",) * (RUNS - 1) + ("iEF / EF",) * (RUNS - 1)
    assert texts(shown)[0][:4] == ["task <1>", "EF / SGD", "step-1", "4.01"]
    assert texts(shown)[0][5:] == ["worse", "8"]


def test_ratios_at_the_end_have_a_column_per_run(runs: list[Run]) -> None:
    by_name = named(runs)
    table = end_table(by_name, run_keys(list(by_name)))
    assert table.head == ("method", *by_name)
    assert [row[0] for row in texts(table)] == ["SGD", "EF", "iEF"]
    assert [text.split()[0] for text in texts(table)[1][1:4]] == ["0.251", "4.01", "0.251"]
    assert texts(table)[2][1:3] == ["–", "0.200"]  # the first run holds no iEF
    assert table.spare
    assert {1, RUNS} & table.spare == set()


def test_the_page_of_runs_is_whole_and_its_names_are_text(runs: list[Run], tmp_path: Path) -> None:
    report = report_runs([run.folder for run in runs], PAIRS[:1], (), tmp_path)
    assert report.place == tmp_path / "report.html"
    text = report.place.read_text(encoding="utf-8")
    assert report_runs([run.folder for run in runs], PAIRS[:1], (), tmp_path) == report
    assert report.place.read_text(encoding="utf-8") == text
    assert "task &lt;1&gt;" in text
    rest = re.sub(r"(?s)<script.*?</script>", "", text)
    assert not re.search(r"https?:|//|url\(|@import|<1>", rest)
    [document] = re.findall(r'(?s)id="chart-document">(.*?)</script>', text)
    places = set(json.loads(document)["roots"].values())
    assert places == {f"chart-{name}" for name in ("pairs-0", "efficiency-0", "efficiency-1")} | {
        "chart-imbalance"
    }
    assert all(f'id="{place}"' in text for place in places)
    assert text.count('class="unseen" id="said-') == len(places)
