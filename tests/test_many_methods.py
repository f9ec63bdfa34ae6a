"""Fifteen methods and more: their names, families, looks, panels and tables."""

from __future__ import annotations

import inspect
import itertools

import pandas as pd
import pytest
from matplotlib.figure import Figure

from evalkit.cli.console import width_of
from evalkit.cli.early import registered
from evalkit.cli.ratios import tables_of
from evalkit.figures import draw_figures
from evalkit.figures.groups import groups_of
from evalkit.figures.layouts import PAPER, SCREEN, Layout
from evalkit.figures.palette import QUIET, method_styles
from evalkit.names import (
    FAMILIES,
    KNOWN,
    MANY,
    YOURS,
    arranged,
    base_name,
    by_family,
    display_name,
    family,
)
from evalkit.report.page.charts import key_groups, run_methods
from evalkit.report.page.tables import scores_table
from evalkit.results.summaries import final_table, headline, near_zero, shown_marks, summarize
from evalkit.storage.run_folder import Run, read_run
from evalkit.updates.registry import registered as function_of
from tests.support.written_runs import cell, score_row, write_run

KFACS = ("kfac", "kfac:labels=empirical", "kfac:labels=improved", "kfac:labels=exact")
STRUCTURES = ("ekfac", "ekfac:labels=exact:norm=position", "diagonal", "kpsvd", "shampoo", "block")
METHODS = (
    *("ngd", "sgd", "ef", "ief", "ief-tikhonov", "fgn", "polyak", "best-weights", "sf"),
    *(*KFACS, *STRUCTURES, "eva", "mine"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of all methods near one another, EF far from them, at two dampings."""
    ratios = {method: 0.6 + 1e-3 * place for place, method in enumerate(METHODS)}
    ratios |= {"sgd": 1.0, "ef": 300.0}
    cells = [
        cell(
            f"step-{step:06d}",
            step,
            step / 10,
            0,
            [
                score_row(method, ratio, damping=damping, error=0.0, dtype="float64")
                for method, ratio in ratios.items()
                for damping in (1e-6, 1e-3)
            ],
        )
        for step in range(11)
    ]
    return read_run(write_run(tmp_path_factory.mktemp("run"), cells))


def variants(base: str) -> list[str]:
    """Return a method under every label and several other settings that its function has."""
    parameters = inspect.signature(function_of(base)).parameters
    given = {
        "labels": ("sampled", "exact", "empirical", "improved", "floor"),
        "labels_per_sample": ("2",),
        "norm": ("sample", "position"),
        "sharing": ("expand", "reduce"),
        "style": ("tikhonov", "pi", "plain"),
        "exponent": ("1", "0.5"),
        "max_iterations": ("5",),
    }
    choices = [
        ["", *(f":{key}={value}" for value in values)]
        for key, values in given.items()
        if key in parameters
    ]
    return [base + "".join(parts) for parts in itertools.product(*choices)]


def test_no_two_methods_read_alike() -> None:
    yours = ["mine", "KFAC", "eKFAC", "EF", "NGD", "mine:labels=exact", "mine:labels=other"]
    methods = [
        *(text for base in KNOWN if base in registered("method") for text in variants(base)),
        *yours,
    ]
    assert len(methods) > 500
    assert len({display_name(method) for method in methods}) == len(methods)
    named = [base for base in KNOWN if base not in registered("method")]
    assert len({display_name(base) for base in [*KNOWN, *named]}) == len(KNOWN)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("kfac", "KFAC"),
        ("kfac:labels=empirical", "eKFAC"),
        ("kfac:labels=improved", "ieKFAC"),
        ("kfac:labels=improved:sharing=reduce", "ieKFAC (sharing=reduce)"),
        ("kfac:labels=exact", "KFAC (exact)"),
        ("ekfac:labels=exact", "EKFAC (exact)"),
        ("eva:labels=improved", "Eva (improved)"),
        ("mine:labels=other", "mine (labels=other)"),
        ("KFAC", "'KFAC'"),
    ],
)
def test_labels_read_by_their_value(method: str, name: str) -> None:
    assert display_name(method) == name


def test_every_method_has_a_family() -> None:
    assert set(registered("method")) <= set(KNOWN)
    assert {known.family for known in KNOWN.values()} == set(FAMILIES) - {YOURS}
    assert family("kfac:labels=exact") == "KFAC"
    assert family("mine:labels=exact") == YOURS


def test_few_methods_stay_as_given_and_many_go_by_family() -> None:
    few = ("ngd", "kfac", "sgd")
    assert arranged([*few, "ngd"]) == few
    ordered = arranged(METHODS)
    assert set(ordered) == set(METHODS)
    assert ordered[0] == "sgd"
    assert ordered[-1] == "ngd"
    assert [family(method) for method in ordered] == sorted(
        (family(method) for method in METHODS), key=FAMILIES.index
    )


def test_a_panel_holds_few_methods_and_the_references() -> None:
    [one] = groups_of(METHODS[:MANY])
    assert (one.title, one.methods, one.quiet) == ("", METHODS[:MANY], ())
    groups = groups_of([*METHODS, *(f"kfac:labels_per_sample={k}" for k in range(2, 9))])
    titles = [group.title for group in groups]
    assert titles[:2] == ["sample weights", "sampled labels"]
    assert titles[2:4] == ["KFAC (1 of 2)", "KFAC (2 of 2)"]
    assert all(group.quiet == ("sgd", "ngd") for group in groups)
    assert all(len(group.methods) <= MANY for group in groups)


def test_no_two_of_many_look_alike_even_in_grey() -> None:
    methods = [*METHODS, *(f"kfac:labels_per_sample={k}" for k in range(2, 6))]
    styles = {method: method_styles(methods)[method] for method in methods}
    assert len({(style.marker, style.dashes) for style in styles.values()}) == len(methods)
    assert len({style.color for style in styles.values()}) == len(methods[:24])
    same = {styles[method].marker for method in KFACS}
    assert len(same) == 1
    assert styles["kfac:labels=empirical"].dashes == styles["ef"].dashes
    assert styles["kfac:labels=exact"].dashes == styles["ngd"].dashes
    assert styles["sgd"] == method_styles([])["sgd"]


@pytest.mark.parametrize("layout", [SCREEN, PAPER], ids=lambda layout: layout.name)
def test_no_labels_of_many_methods_overlap(run: Run, layout: Layout) -> None:
    figures = draw_figures(run, layout)
    assert set(figures) >= {"ratio", "efficiency", "damping"}
    for figure in figures.values():  # laid out for good
        _labels_are_apart(figure)
    named = {text.get_text() for ax in figures["ratio"].axes for text in ax.texts}
    assert {display_name(m).replace(", ", ",\n") for m in KFACS} <= named
    titles = [ax.get_title(loc="left") for ax in figures["ratio"].axes if ax.get_visible()]
    assert titles[:2] == ["sample weights", "sample weights, near 1"]
    assert titles.count("KFAC") == 1
    grey = [line for ax in figures["ratio"].axes for line in ax.lines if line.get_color() == QUIET]
    assert grey


def _labels_are_apart(figure: Figure) -> None:
    axes = [ax for ax in figure.axes if ax.get_visible()]
    texts = [text for ax in axes for text in ax.texts]
    boxes = [text.get_window_extent() for text in texts]
    slack = 3 * figure.dpi / 100  # boxes hold the room of descenders, which few names have
    for (one, name), (other, beside) in itertools.combinations(zip(boxes, texts, strict=True), 2):
        apart = one.x1 <= other.x0 or other.x1 <= one.x0
        apart |= one.y1 <= other.y0 + slack or other.y1 <= one.y0 + slack
        assert apart, f"{name.get_text()} overlaps {beside.get_text()} {one} {other}"
    panels = [ax.get_window_extent() for ax in axes]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(panel) for panel in panels)


@pytest.fixture(scope="module")
def rows(run: Run) -> pd.DataFrame:
    return final_table(run)


@pytest.mark.parametrize("width", [80, 120, 400])
def test_the_printed_table_fits_the_window(rows: pd.DataFrame, width: int) -> None:
    methods = arranged(METHODS)
    assert rows.columns[2:].tolist() == [display_name(method) for method in methods]
    tables = tables_of(rows, methods, width)
    assert all(width_of(table) <= width for table in tables)
    if width == 400:
        [table] = tables
        assert len(table.columns) == len(methods) + 2
        return
    assert [table.row_count for table in tables] == [len(methods)] * len(tables)
    assert sum(len(table.columns) - 1 for table in tables) == len(rows)
    cells = [str(cell) for table in tables for column in table.columns[1:] for cell in column.cells]
    expected = [str(value) for _, row in rows.iterrows() for value in row.iloc[2:]]
    assert cells == expected


def test_the_headline_of_many_methods_names_the_best_and_the_last(run: Run) -> None:
    assert headline(run).startswith(
        "At the end of training NGD is at 0.600x SGD's gamma, iEF at 0.603x, iEF (Tikhonov) at "
        f"0.604x, FGN at 0.605x, Polyak at 0.606x, {len(METHODS) - 7} more, and EF at 300x; "
    )


def test_many_methods_are_rows_of_the_page_and_switched_by_family(run: Run) -> None:
    table = scores_table(near_zero(summarize(run)), shown_marks(run))
    assert table.head[:2] == ("method", "step-000000 (0.00)")
    methods = run_methods(run)
    assert [row[0].text for row in table.rows] == [display_name(method) for method in methods]
    groups = dict(key_groups(methods))
    assert list(groups) == [*by_family(METHODS), ""]
    assert [key.name for key in groups["KFAC"]][:3] == ["KFAC", "eKFAC", "ieKFAC"]
    tags = {key.name: key.tag for keys in groups.values() for key in keys}
    assert {row[0].text: row[0].tag for row in table.rows}.items() <= tags.items()
    assert base_name(methods[0]) == "sgd"
