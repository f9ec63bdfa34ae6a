"""Pairs of methods, sweeps over dampings, and the reports of one and of several runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from scipy.stats import gmean, gstd

from evalkit.cli import main
from evalkit.errors import EvalkitError
from evalkit.figures import draw_figures, draw_figures_of_runs
from evalkit.figures.layouts import LAYOUTS, PAPER
from evalkit.figures.multipanel import pairs_figure
from evalkit.figures.run_figures import save_figures, settled
from evalkit.report.page import render_page
from evalkit.report.writing import derived_of, overlap_notes
from evalkit.results.pairs import Member, compare, compare_runs, named, parse_pair, statements
from evalkit.results.summaries import final_table, headline, near_zero, summarize, summarize_batches
from evalkit.results.sweeps import best_dampings, damping_discussion, discussed_dampings
from evalkit.storage.run_folder import Run, read_run, update_provenance
from tests.support.written_runs import PROVENANCE, cell, score_row, write_run

EF = {1e-12: [(4.0, 8.0), (40.0, 90.0), (400.0, 900.0)], 1e-3: [(2.0, 3.0), (2.0, 2.5), (1.1, 1.3)]}
IEF = [(0.5, 0.7), (0.6, 0.6), (0.4, 0.9)]
COSINE = {1e-12: 0.1, 1e-3: 0.97}


def sweep(folder: Path, task: str = "digits", dampings: tuple[float, ...] = (1e-12, 1e-3)) -> Run:
    """Return a run of three checkpoints with two batches; gamma of SGD is 2, then 3."""
    cells = []
    for place in range(3):
        for batch in range(2):
            sgd = 2.0 + batch
            rows = [
                score_row(method, ratio, sgd, damping=damping, cosine_sgd=COSINE[damping])
                for damping in dampings
                for method, ratio in (
                    ("sgd", 1.0),
                    ("ef", EF[damping][place][batch]),
                    ("ief", IEF[place][batch]),
                )
            ]
            cells.append(cell(f"c{place}", place, place / 2, batch, rows))
    return read_run(write_run(folder, cells, {**PROVENANCE, "task": task}))


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("ief/sgd", (Member("ief"), Member("sgd"))),
        ("ef@1e-6/ief", (Member("ef", 1e-6), Member("ief"))),
        ("sf:labels_per_sample=4 / sf", (Member("sf:labels_per_sample=4"), Member("sf"))),
    ],
)
def test_pairs_as_written(text: str, members: tuple[Member, Member]) -> None:
    pair = parse_pair(text)
    assert (pair.first, pair.second) == members


@pytest.mark.parametrize("text", ["", "ief", "ief/", "/sgd", "a/b/c", "ef@x/sgd", "ef@/sgd"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(EvalkitError, match="write METHOD"):
        parse_pair(text)


def test_means_are_geometric(tmp_path: Path) -> None:
    run = sweep(tmp_path)
    table = compare(run, [parse_pair("ef/ief")])
    assert table["checkpoint"].tolist() == ["c0", "c1", "c2"]
    for row, ef, ief in zip(table.itertuples(), EF[1e-12], IEF, strict=True):
        ratios = np.array(ef) / np.array(ief)
        assert row.ratio_mean == pytest.approx(gmean(ratios))
        assert row.ratio_factor == pytest.approx(gstd(ratios))
        assert math.exp(row.log_ratio) == pytest.approx(gmean(ratios))
        assert (row.low, row.high, row.statement) == (-math.inf, math.inf, "undecided")
    again = compare(run, [parse_pair("ef/ief")])
    pd.testing.assert_frame_equal(again, table)
    assert compare(run, [parse_pair("ief/ief")])["statement"].unique().tolist() == ["undecided"]
    assert statements(table)[0] == (  # iEF has efficiencies above 100%
        "EF / iEF at c2: 1e+03* (0 to inf, 2 batches), undecided: a statement needs 3 batches"
    )


def test_one_mean_everywhere(tmp_path: Path) -> None:
    run = sweep(tmp_path)
    there, back = compare(run, [parse_pair("ef/sgd")]), compare(run, [parse_pair("sgd/ef")])
    assert (there["ratio_mean"] * back["ratio_mean"]).tolist() == pytest.approx([1] * 3)
    summary = near_zero(summarize(run)).set_index(["method", "checkpoint"])
    assert there["ratio_mean"].tolist() == pytest.approx(summary.loc["ef", "ratio_mean"].tolist())
    floors = summarize_batches(run)["floor_ratio_mean"].to_numpy()
    for method in ("ef", "ief", "sgd"):
        of_method = summary.loc[method]
        assert (of_method["ratio_mean"] * of_method["efficiency_mean"]).to_numpy() == (
            pytest.approx(floors)
        )
    assert statements(there)[0].startswith("EF / SGD at c2: 600 ")
    assert final_table(run)["EF"].iloc[-1].startswith("600 ")
    assert "EF at 600x" in headline(run)


def noisy(folder: Path, batches: int, methods: int) -> Run:
    """Return a run of one checkpoint: methods near SGD, of which the first is better."""
    draws = np.random.default_rng(0)
    ratios = np.exp(0.1 * draws.normal(0, 1, (methods, batches)))
    ratios[0] = np.exp(-0.1 + 0.1 * np.linspace(-1, 1, batches))
    cells = []
    for batch in range(batches):
        rows = [score_row(f"m{place}", ratio) for place, ratio in enumerate(ratios[:, batch])]
        cells.append(cell("c", 0, 1.0, batch, [score_row("sgd", 1.0), *rows]))
    return read_run(write_run(folder, cells))


def test_statements_are_corrected_for_their_number(tmp_path: Path) -> None:
    run = noisy(tmp_path, 8, 12)
    [alone] = compare(run, [parse_pair("m0/sgd")]).to_dict("records")
    pairs = [parse_pair(f"m{place}/sgd") for place in range(12)]
    together = compare(run, pairs)
    first = together.iloc[0]
    assert alone["statement"] == "better"
    assert first["statement"] == "undecided"
    assert (first["p_value"], first["high"]) == (alone["p_value"], alone["high"])
    assert first["corrected_p_value"] == pytest.approx(12 * first["p_value"])
    lines = statements(together)
    assert lines[0].endswith("8 batches), undecided: not after correction")
    assert "all 12 rows" in lines[-1]


@pytest.mark.parametrize(("samples", "noted"), [(10, True), (10_000, False), (None, False)])
def test_a_report_says_when_batches_overlap(
    tmp_path: Path, samples: int | None, noted: bool
) -> None:
    folder = noisy(tmp_path, 8, 1).folder
    update_provenance(folder, training_samples=samples)
    run = read_run(folder)
    assert [("80% of a batch are in any other" in note) for note in overlap_notes([run])] == (
        [True] if noted else []
    )
    page = render_page(run, derived_of(run, [parse_pair("m0/sgd")]))
    assert ("80% of a batch" in page) == noted


def test_a_method_that_was_not_scored(tmp_path: Path) -> None:
    run = sweep(tmp_path)
    with pytest.raises(EvalkitError, match="did you mean 'ief'"):
        compare(run, [parse_pair("iefs/sgd")])
    with pytest.raises(EvalkitError, match=r"1e-12, 0\.001"):
        compare(run, [parse_pair("ef@1e-5/sgd")])


def test_runs_are_named_apart(tmp_path: Path) -> None:
    first, second = sweep(tmp_path / "a", "cola"), sweep(tmp_path / "b", "rte")
    assert list(named([first, second])) == ["cola", "rte"]
    assert list(named([first, sweep(tmp_path / "c", "cola")])) == ["a", "c"]
    table = compare_runs([first, second], [parse_pair("ief/sgd")])
    assert table.groupby("run").size().to_dict() == {"cola": 3, "rte": 3}
    with pytest.raises(EvalkitError, match="twice"):
        named([first, first])


def test_distance_of_near_zero_damping_from_the_best(tmp_path: Path) -> None:
    table = best_dampings(sweep(tmp_path)).set_index(["stage", "method"])
    row = table.loc[("end", "EF")]
    assert (row["damping"], row["best_damping"]) == (1e-12, 1e-3)
    assert row["ratio"] == pytest.approx(600)
    assert row["best_ratio"] == pytest.approx(gmean([1.1, 1.3]))
    assert row["distance"] == pytest.approx(row["ratio"] / row["best_ratio"])
    assert row["distance"] == pytest.approx(gmean([400 / 1.1, 900 / 1.3]))
    assert row["distance_low"] <= row["distance"] <= row["distance_high"]
    assert table.loc[("end", "iEF"), "distance"] == 1
    assert set(table.index) == {(s, m) for s in ("start", "middle", "end") for m in ("EF", "iEF")}


def test_damping_discussion(tmp_path: Path) -> None:
    run = sweep(tmp_path)
    chosen = discussed_dampings(run)
    assert chosen == (1e-12, 1e-3)
    table = damping_discussion(run, chosen)
    assert table["label"].unique().tolist() == ["EF, λ = 1e-12", "EF, λ = 0.001", "iEF"]
    large = table[table["label"] == "EF, λ = 0.001"]
    assert large["cosine_sgd_mean"].tolist() == [0.97] * 3
    assert large["ratio_mean"].tolist() == pytest.approx(
        [gmean(np.divide(EF[1e-3][place], IEF[place])) for place in range(3)]
    )
    assert table[table["label"] == "iEF"]["ratio_mean"].tolist() == [1.0] * 3


def test_the_best_damping_is_ringed(tmp_path: Path) -> None:
    figure = draw_figures(sweep(tmp_path))["damping"]
    rings = [
        line for ax in figure.axes for line in ax.lines if line.get_markerfacecolor() == "none"
    ]
    places = {tuple(np.ravel(line.get_xdata())) for line in rings}
    assert places == {(1e-12,), (1e-3,)}


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_figures_of_runs(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS.get(name)
    runs = [sweep(tmp_path / "a", "cola"), sweep(tmp_path / "b", "rte")]
    pairs = [parse_pair(text) for text in ("ef/sgd", "ief/sgd", "ief/ef")]
    figures = draw_figures_of_runs(runs, pairs, layout)
    labels = [ax.get_ylabel() for ax in figures["pairs"].axes if ax.get_visible()]
    assert labels == ["Ratio EF / SGD", "Ratio iEF / SGD", "Ratio iEF / EF", "Imbalance"]
    assert [text.get_text() for text in figures["pairs"].legends[0].get_texts()] == ["cola", "rte"]
    assert figures["pairs"].get_size_inches()[0] == layout.two_columns
    [first] = [ax for ax in figures["efficiency"].axes if ax.get_ylabel().endswith("iEF")]
    drawn = [line.get_ydata() for line in first.lines]
    assert drawn[0] == pytest.approx(
        [gmean([1 / (2 * a), 1 / (3 * b)]) for a, b in IEF]  # gamma_floor is 1
    )


def test_report_of_one_run_for_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = sweep(tmp_path / "run").folder
    assert main(["report", str(run), "--pairs", "ief/sgd,ef@1e-3/ief", "--style", "paper"]) == 0
    printed = capsys.readouterr().out
    assert "iEF / SGD at c2: " in printed
    assert "EF, λ = 0.001 / iEF at c2: " in printed
    names = {"ratio", "efficiency", "pairs", "damping", "discussion"}
    for folder, formats in ((run / "figures", ("png", "svg")), (run / "figures/paper", ("pdf",))):
        for kind in formats:
            assert {path.stem for path in folder.glob(f"*.{kind}")} == names
    assert pd.read_csv(run / "pairs.csv")["pair"].nunique() == 2
    assert len(pd.read_csv(run / "dampings.csv")) == 6
    pairs = [parse_pair(pair) for pair in ("ief/sgd", "ef@1e-3/ief")]
    with rc_context(PAPER.settings()):  # the other layout, every figure: test_figures
        again = {"pairs": settled(pairs_figure([read_run(run)], pairs, PAPER))}
    for path in save_figures(again, tmp_path / "again", PAPER):
        drawn = run / "figures" / path.relative_to(tmp_path / "again")
        assert path.read_bytes() == drawn.read_bytes()


def test_report_of_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(sweep(tmp_path / name, name).folder) for name in ("cola", "rte")]
    out = tmp_path / "both"
    assert main(["report", *runs, "--pairs", "ief/sgd", "--out", str(out)]) == 0
    assert "rte, iEF / SGD at c2" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.{kind}" for name in ("pairs", "efficiency") for kind in ("png", "svg")),
        "pairs.csv",
        "report.html",
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "--out"),
        (("--out", "x", "--style", "papier"), "did you mean 'paper'"),
        (("--out", "x", "--pairs", "ief"), "METHOD"),
        (("--out", "x", "--slide"), "for a --slide, found 2 runs"),
    ],
)
def test_bad_requests_end_with_one_sentence(
    tmp_path: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(sweep(tmp_path / name, name).folder) for name in ("cola", "rte")]
    assert main(["report", *runs, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_print_has_two_widths() -> None:
    assert (PAPER.one_column, PAPER.two_columns) == (3.25, 6.75)
    assert "pdf" in PAPER.formats
