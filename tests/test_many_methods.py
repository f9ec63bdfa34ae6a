"""Fifteen methods and more: their names, families, looks, panels and tables."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from evalkit.cli.console import tables_of_frame, width_of
from evalkit.cli.early import registered
from evalkit.cli.ratios import MOST_TABLES, shown_rows, tables_of
from evalkit.figures import draw_figures, slide_figure
from evalkit.figures.groups import groups_of
from evalkit.figures.layouts import PAPER, SCREEN, Layout
from evalkit.figures.multipanel import pairs_figure
from evalkit.figures.palette import QUIET, method_styles, run_styles
from evalkit.figures.slide import MOST_ROWS, drawn_methods
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
from evalkit.results.pairs import parse_pair
from evalkit.results.summaries import (
    evenly_chosen,
    final_table,
    headline,
    near_zero,
    shown_marks,
    summarize,
)
from evalkit.storage.run_folder import Run, read_run
from evalkit.updates.registry import registered as function_of
from tests.support.written_runs import PROVENANCE, cell, score_row, write_run

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


@pytest.mark.parametrize("width", [80, 120])
def test_of_many_checkpoints_two_tables_are_printed(rows: pd.DataFrame, width: int) -> None:
    methods = arranged(METHODS)
    names = [f"step-{step:06d}" for step in range(30)]
    many = pd.concat([rows] * 3, ignore_index=True).head(30).assign(checkpoint=names)
    shown = shown_rows(many, methods, width)
    tables = tables_of(shown, methods, width)
    assert len(tables) == MOST_TABLES
    assert all(width_of(table) <= width for table in tables)
    places = [names.index(name) for name in shown["checkpoint"]]
    gaps = {after - before for before, after in itertools.pairwise(places)}
    assert (places[0], places[-1]) == (0, 29)
    assert max(gaps) - min(gaps) <= 1
    more = many.iloc[list(evenly_chosen(len(many), len(shown) + 1))]
    assert len(tables_of(more, methods, width)) > MOST_TABLES
    assert len(shown_rows(many.head(5), methods, width)) == 5


def test_a_wide_frame_is_printed_in_parts_that_each_name_the_rows() -> None:
    frame = pd.DataFrame({f"column {place}": ["a long text", "short"] for place in range(9)})
    tables = tables_of_frame(frame, 80)
    assert all(width_of(table) <= 80 for table in tables)
    heads = [[str(column.header) for column in table.columns] for table in tables]
    assert [head[0] for head in heads] == ["column 0"] * len(tables)
    assert [name for head in heads for name in head[1:]] == list(frame.columns[1:])
    assert len(tables_of_frame(frame, 400)) == 1


def test_a_slide_names_the_best_methods_apart_from_one_another(run: Run) -> None:
    figure = slide_figure(run)
    figure.draw_without_rendering()
    plot, table = figure.axes
    said = [text.get_text().replace("\n", " ") for text in table.texts]
    listed = [name for name in map(display_name, METHODS) if name in said]
    assert len(listed) == MOST_ROWS - 1
    assert {"NGD", "EF", f"{len(METHODS) - len(listed)} more"} <= set(said)
    drawn = [display_name(method) for method in drawn_methods(near_zero(summarize(run)))]
    assert drawn == ["NGD", "iEF", "SF", "KFAC", "diagonal", "mine", "SGD", "EF"]
    assert {*drawn, "floor"} == {text.get_text() for text in plot.texts}
    texts = (*figure.texts, *plot.texts, *table.texts)
    boxes = {text: text.get_window_extent() for text in texts}
    slack = 3 * figure.dpi / 100  # boxes hold the room of descenders
    for (one, box), (other, beside) in itertools.combinations(boxes.items(), 2):
        apart = box.x1 <= beside.x0 or beside.x1 <= box.x0
        apart |= box.y1 <= beside.y0 + slack or beside.y1 <= box.y0 + slack
        assert apart, f"{one.get_text()} overlaps {other.get_text()}"
    assert all(figure.bbox.containsx(x) for box in boxes.values() for x in (box.x0, box.x1))


def test_no_two_of_many_runs_look_alike() -> None:
    styles = run_styles([str(place) for place in range(64)])
    assert len({(style.marker, style.dashes) for style in styles.values()}) == 64
    assert len({style.color for style in list(styles.values())[:20]}) == 20


def test_many_runs_have_a_row_of_panels_each(tmp_path: Path) -> None:
    runs = []
    for place in range(MANY + 1):
        rows = [[score_row("sgd", 1.0), score_row("ef", 2.0 + place + step)] for step in range(2)]
        cells = [cell(f"c{step}", step, float(step), 0, rows[step]) for step in range(2)]
        provenance = PROVENANCE | {"task": f"task-{place}"}
        runs.append(read_run(write_run(tmp_path / str(place), cells, provenance)))
    assert len(pairs_figure(runs[:MANY], [parse_pair("ef/sgd")]).axes) == 2
    grid = pairs_figure(runs, [parse_pair("ef/sgd")]).axes
    assert [ax.get_ylabel() for ax in grid[::2]] == [f"task-{place}" for place in range(MANY + 1)]
    assert [ax.get_title() for ax in grid[:2]] == ["Ratio EF / SGD", "Imbalance"]
    for place, ax in enumerate(grid[::2]):
        lines = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_zorder() != 1]
        assert [line.get_ydata().tolist() for line in lines] == [[2.0 + place, 3.0 + place]]
        assert sum(line.get_color() == QUIET for line in ax.lines) == MANY
    assert {ax.get_ylim() for ax in grid[::2]} == {grid[0].get_ylim()}


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
    assert table.groups == tuple(family(method) for method in methods)
    assert [title for title, _ in table.parts] == list(by_family(METHODS))
    assert {1, 11} & table.spare == set()
    assert len(table.spare) == 11 - 7
    groups = dict(key_groups(methods))
    assert list(groups) == [*by_family(METHODS), ""]
    assert [key.name for key in groups["KFAC"]][:3] == ["KFAC", "eKFAC", "ieKFAC"]
    tags = {key.name: key.tag for keys in groups.values() for key in keys}
    assert {row[0].text: row[0].tag for row in table.rows}.items() <= tags.items()
    assert base_name(methods[0]) == "sgd"
