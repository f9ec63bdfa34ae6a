"""The page: whole, escaped, self-contained, and never half-written."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from evalkit.errors import EvalkitError
from evalkit.report.page import render as page_module
from evalkit.report.page import render_page
from evalkit.report.page.cells import Cell, Table
from evalkit.report.page.records import provenance_table
from evalkit.report.page.scripts import script_hash
from evalkit.report.writing import derived_of, report_run
from evalkit.results.marks import Mark
from evalkit.storage.run_folder import read_run, update_provenance
from tests.support.written_runs import PROVENANCE, cell, ngd_row, score_row, write_run

VOID = {"meta", "img", "br", "link", "input"}


class Reader(HTMLParser):
    """Reads a page: tags in balance, what it loads, the text of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.values: list[str] = []
        self.ids: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        assert self.open == []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self.values += [value or "" for name, value in attrs if name == "data-value"]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "script":
            self.scripts.append("")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "small":
            self.tables[-1][-1][-1] += " | "

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        if self.open and self.open[-1] in ("td", "th", "small"):
            self.tables[-1][-1][-1] += data.strip()


def cells_of(ratios: list[float], names: tuple[str, str] = ("first", "last")) -> list[tuple]:
    return [
        cell(
            name,
            step,
            float(step),
            batch,
            [score_row("sgd", 1.0), score_row("ef", ratio), ngd_row(0.6, solver="cg")],
        )
        for step, name in enumerate(names)
        for batch, ratio in enumerate(ratios)
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Reader]:
    """A run, its page, and what it says."""
    folder = write_run(tmp_path_factory.mktemp("plain"), cells_of([2.0, 4.0]))
    return folder, *page_of(folder)


def page_of(folder: Path) -> tuple[str, Reader]:
    run = read_run(folder)
    text = render_page(run, derived_of(run))
    return text, Reader(text)


def test_the_page_holds_the_result(plain: tuple[Path, str, Reader]) -> None:
    _, text, page = plain
    scores, pairs, batches, solver, provenance, hashes = page.tables
    assert scores[0] == ["checkpoint", "progress", "SGD", "EF", "NGD"]
    assert scores[1][:2] == ["first", "0.00"]
    assert scores[1][3] == "2.83 ×/÷ 1.63 | 18% ×/÷ 1.63"
    assert pairs[1][:2] == ["EF / SGD", "last"]
    assert pairs[1][2:] == ["2.83", "0 to inf", "undecided", "2"]  # two batches decide nothing
    assert len(scores) == len(batches) == 3
    assert batches[1][2:6] == ["0.500", "0.750", "10.0", "5.00"]
    assert solver[1] == ["first", "NGD", "1e-12", "cg", "100%", "12.0", "1.00e-04", "20%"]
    assert ["versions: torch", "2.13.0"] in provenance
    assert ["settings: seed", "0"] in provenance
    assert ["settings: methods", "sgd, ef, ngd"] in provenance
    assert hashes[1][0] == "first"
    assert hashes[1][-1] == "ab" * 32
    assert "At the end of training NGD is at 0.600x SGD&#39;s gamma, EF at 2.83x" in text
    assert "Geometric means over 2 batches of 8 samples at\n2 checkpoints" in text
    assert "not finished" not in text


def test_the_page_loads_nothing_from_elsewhere(plain: tuple[Path, str, Reader]) -> None:
    _, text, page = plain
    inside = {place[1:] for place in page.loads if place.startswith("#")}
    assert inside <= set(page.ids)
    outside = [place for place in page.loads if not place.startswith("#")]
    assert outside == ["scores.csv", "batches.csv"]  # what the links lead to, not loaded
    assert not {"link", "iframe", "object", "img"} & set(page.tags)
    rest = re.sub(r"(?s)<script.*?</script>", "", text)
    assert not re.search(r"https?:|//|url\(|@import", rest)
    assert not re.search(r"https?:|fetch|import|XMLHttp", page.scripts[-1])


def test_the_policy_allows_the_scripts_of_the_page_alone(plain: tuple[Path, str, Reader]) -> None:
    _, text, page = plain
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0])
    *_, library, _, script = page.scripts
    run = gzip.decompress(base64.b64decode(library)).decode("utf-8")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert f"'{script_hash(script)}' '{script_hash(run)}';" in policy
    assert "Redistributions in binary form must reproduce" in run  # the licence goes along


def test_the_page_carries_the_tables(plain: tuple[Path, str, Reader]) -> None:
    folder, _, page = plain
    carried = [gzip.decompress(base64.b64decode(script)) for script in page.scripts[:2]]
    files = [(folder / name).read_bytes() for name in ("scores.csv", "batches.csv")]
    assert carried == files


def test_large_tables_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, cells_of([2.0, 4.0]))
    limit = (tmp_path / "batches.csv").stat().st_size
    monkeypatch.setattr(page_module, "EMBEDDED_BYTES", limit)
    text, page = page_of(tmp_path)
    assert gzip.decompress(base64.b64decode(page.scripts[0])).startswith(b"checkpoint,step")
    assert text.count("data-content=") == 1
    assert "1 kB, beside this page" in text


def test_names_are_text_never_markup(tmp_path: Path) -> None:
    name = "<script>alert('x')</script>"
    rows = [score_row("sgd", 1.0), score_row("<b>$x$</b>", 0.5)]
    cells = [cell(name, step, float(step), 0, rows) for step in (0,)]
    tricky = PROVENANCE | {"task": '"><img src=x>', "notes": {"<i>": "</td></table>"}}
    write_run(tmp_path, cells, tricky)
    text, page = page_of(tmp_path)
    assert not {"b", "img"} & set(page.tags)
    assert page.tags.count("script") == len(page.scripts) == 5
    assert json.loads(page.scripts[3])["document"]["roots"]
    assert page.tables[0][1][0] == name
    assert page.tables[0][0][3] == "<b>$x$</b>"
    assert html.escape(name, quote=False) in text.replace("&#39;", "'")


def test_warnings_are_counted(tmp_path: Path) -> None:
    rows = [[score_row("ef", ratio, slope=-1.0)] for ratio in (2.0, math.inf, math.nan)]
    write_run(tmp_path, [cell("c", 0, 1.0, batch, row) for batch, row in enumerate(rows)])
    text, page = page_of(tmp_path)
    assert page.tables[0][1][2].startswith("inf | 0% | uphill")
    assert page.values[:2] == ["1.0", "Infinity"]
    assert page.tables[0][1][2].endswith(
        "| uphill in 3 of 3, infinite in 1 of 3, undefined in 1 of 3"
    )
    assert 'class="worse"' in text
    assert "Linear conjugate gradients" not in text  # no method used a solver


@pytest.mark.parametrize(
    ("gamma", "said"),
    [
        (
            1.0004,
            "in 2 of 2 solves. It does not matter: each of these gammas is at most 0.04% above",
        ),
        (1.3, "is 30% above the floor, which the exact solution need not reach: score again with "),
    ],
)
def test_a_solver_that_stops_early_says_whether_it_matters(
    tmp_path: Path, gamma: float, said: str
) -> None:
    rows = [
        score_row("sgd", 1.0),
        ngd_row(gamma / 2, solver="cg") | {"converged": False, "iterations": 200},
    ]
    write_run(tmp_path, [cell("last", 1, 1.0, batch, rows) for batch in range(2)])
    text, _ = page_of(tmp_path)
    assert "NGD stopped before its tolerance in 2 of 2 solves." in text
    assert said in text
    assert ("ngd:max_iterations=800, or with ngd:solver=direct" in text) == (gamma > 1.01)


def test_a_solver_that_converges_needs_no_sentence(plain: tuple[Path, str, Reader]) -> None:
    assert "stopped before its tolerance" not in plain[1]


def test_a_cell_carries_a_mark_with_its_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = Mark("*", 'estimated error 2e-3 > "1e-3"')
    table = Table(("checkpoint", "SGD"), ((Cell("last"), Cell("1.00", 1.0, mark=mark)),))
    monkeypatch.setattr(page_module, "scores_table", lambda shown, marks: table)
    write_run(tmp_path, cells_of([2.0]))
    text, page = page_of(tmp_path)
    meaning = html.escape(mark.meaning).replace("&quot;", "&#34;")
    assert f'title="{meaning}" aria-label="*, {meaning}">*</span>' in text
    assert page.values[0] == "1.0"  # by which the column sorts


def test_a_sweep_adds_a_table_and_a_figure(tmp_path: Path) -> None:
    rows = [
        score_row(method, ratio, damping=damping)
        for method, ratio in (("sgd", 1.0), ("ef", 3.0))
        for damping in (1e-12, 1e-3)
    ]
    write_run(tmp_path, [cell("a", 0, 0.0, 0, rows), cell("b", 1, 1.0, 0, rows)])
    text, page = page_of(tmp_path)
    assert page.tables[1] == [
        ["method", "damping", "start: a", "end: b"],
        ["EF", "1e-12", "3.00 | 17%", "3.00 | 17%"],
        ["EF", "0.001", "3.00 | 17%", "3.00 | 17%"],
    ]
    assert 'id="chart-damping-1"' in text
    assert "Damping 1e-12, the smallest scored" in text


@pytest.mark.parametrize(
    "provenance",
    [{}, {"checkpoints": "none", "versions": None, "settings": []}, {"checkpoints": [1, {}]}],
)
def test_little_provenance_is_enough(tmp_path: Path, provenance: dict) -> None:
    write_run(tmp_path / "mine", cells_of([2.0])[:1], provenance)
    text, _ = page_of(tmp_path / "mine")
    assert "<title>evalkit report: mine</title>" in text
    assert "This run is not finished" in text
    assert "Geometric means over 1 batch of 8 samples at\n1 checkpoint," in text


def test_optimizers_read_as_settings(tmp_path: Path) -> None:
    group = {"lr": 1e-3, "betas": [0.9, 0.999], "amsgrad": False, "fused": None, "nesterov": True}
    entries = [
        {"checkpoint": f"c{place}", "sha256": "ab", "class": "torch.AdamW", "groups": groups}
        for place, groups in enumerate(([group], [group, {"lr": 0.1}]))
    ]
    past = [{"task": "one", "labels": "exact"}, {"task": "one", "labels": "exact"}]
    found = provenance_table({"optimizers": entries, "past": past, "checkpoints": entries})
    said = "sha256 ab, class torch.AdamW, groups "
    one = "(lr 0.001, betas (0.9, 0.999), nesterov)"
    assert [[cell.text for cell in row] for row in found.rows] == [
        ["optimizers: c0", f"{said}{one}"],
        ["optimizers: c1", f"{said}({one}, (lr 0.1))"],
        ["past: one", "labels exact"],
        ["past: one (2)", "labels exact"],
    ]


def test_the_page_is_the_same_each_time_and_leaves_the_tables(tmp_path: Path) -> None:
    write_run(tmp_path, cells_of([2.0, 4.0]))
    before = (tmp_path / "scores.csv").read_bytes()
    first = report_run(tmp_path).place.read_bytes()
    assert report_run(tmp_path).place.read_bytes() == first
    assert (tmp_path / "scores.csv").read_bytes() == before
    assert "<code>figures/ratio.svg</code>" in first.decode("utf-8")
    assert (tmp_path / "figures" / "ratio.svg").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "batches.csv",
        "figures",
        "pairs.csv",
        "report.html",
        "run.json",
        "scores.csv",
    ]


def test_a_slide_is_the_same_each_time(tmp_path: Path) -> None:
    write_run(tmp_path, cells_of([2.0, 4.0]))
    places = [tmp_path / "figures" / f"slide.{kind}" for kind in ("png", "svg")]
    drawn = []
    for _ in range(2):
        report_run(tmp_path, layouts=(), slide=True)
        drawn.append([place.read_bytes() for place in places])
    assert drawn[0] == drawn[1]
    height, width = plt.imread(places[0]).shape[:2]
    assert width / height == pytest.approx(16 / 9, abs=0.01)


def test_an_unreadable_run_keeps_the_old_page(tmp_path: Path) -> None:
    write_run(tmp_path, cells_of([2.0]))
    before = report_run(tmp_path).place.read_bytes()
    update_provenance(tmp_path, task="other")
    (tmp_path / "scores.csv").write_text("checkpoint\n")
    with pytest.raises(EvalkitError, match=r"scores\.csv"):
        report_run(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
