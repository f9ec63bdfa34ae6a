"""Everything that a report consists of: page, figures, tables of pairs and of dampings."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evalkit.errors import EvalkitError
from evalkit.figures import draw_figures_of_runs, save_figures, slide_figure, write_figures
from evalkit.figures.layouts import SCREEN, SLIDE, Layout
from evalkit.overlap import overlap_note
from evalkit.report.page import Derived, render_page, render_runs_page
from evalkit.results.marks import marks_of
from evalkit.results.pairs import (
    DEFAULT_PAIRS,
    Pair,
    compare,
    compare_runs,
    named,
    parse_pair,
    statements,
)
from evalkit.results.sweeps import best_dampings, is_sweep
from evalkit.storage.files import write_atomically
from evalkit.storage.run_folder import FIGURES_FOLDER, REPORT_FILE, Run, read_run

PAIRS_FILE = "pairs.csv"
DAMPINGS_FILE = "dampings.csv"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        place: the page.
        statements: a sentence per pair of methods at the end of training, what they hold for, and
            a sentence per run whose batches overlap much, and what is said of marked scores.
    """

    place: Path
    statements: tuple[str, ...]


def derived_of(run: Run, pairs: Sequence[Pair] = ()) -> Derived:
    """Return the tables made of a run: of pairs, those of the paper where none are named."""
    return Derived(
        compare(run, pairs or _scored_pairs(run)),
        best_dampings(run) if is_sweep(run) else pd.DataFrame(),
    )


def report_run(
    folder: str | os.PathLike[str],
    pairs: Sequence[Pair] = (),
    layouts: Sequence[Layout] = (SCREEN,),
    wording: Callable[[str], str] = str,
    slide: bool = False,
) -> Report:
    """Write figures, page and tables of one run into its folder.

    Args:
        folder: the RUN; the tables it came with stay as they are.
        pairs: to draw, and to compare; without any, those of the paper that were scored are
            compared.
        layouts: sizes and formats of the figures.
        wording: as for :func:`evalkit.report.page.render_page`.
        slide: whether one is drawn as well.

    Raises:
        EvalkitError: the run cannot be read, a pair was not scored, or its folder is read-only.
    """
    run = read_run(folder)
    derived = derived_of(run, pairs)
    files = [
        path
        for layout in layouts
        for path in write_figures(run, run.folder / FIGURES_FOLDER, layout, pairs)
    ]
    if slide:
        drawn = {"slide": slide_figure(run)}
        files += save_figures(drawn, run.folder / FIGURES_FOLDER, SLIDE)
    for name, table in ((PAIRS_FILE, derived.pairs), (DAMPINGS_FILE, derived.dampings)):
        if len(table):
            files.append(write_table(table, run.folder / name))
    page = run.folder / REPORT_FILE
    write_atomically(page, render_page(run, derived, files, wording))
    return Report(page, (*statements(derived.pairs), *overlap_notes([run]), *mark_notes([run])))


def report_runs(
    folders: Sequence[str | os.PathLike[str]],
    pairs: Sequence[Pair],
    layouts: Sequence[Layout],
    out: str | os.PathLike[str] | None,
    wording: Callable[[str], str] = str,
) -> Report:
    """Write figures with a line per run, the table of their pairs, and a page of both.

    Args:
        folders: the RUNs.
        pairs: a panel each; without any, those of the paper.
        layouts: sizes and formats.
        out: the folder to write to.
        wording: as for :func:`evalkit.report.page.render_page`.

    Raises:
        EvalkitError: no folder is named, a run cannot be read, or a pair was not scored.
    """
    if out is None:
        raise EvalkitError(
            f"expected a folder for the figures of {len(folders)} runs, found none; name it "
            "as `out`"
        )
    runs = [read_run(folder) for folder in folders]
    chosen = list(pairs) or [parse_pair(pair) for pair in DEFAULT_PAIRS]
    table = compare_runs(runs, chosen)
    files = [
        path
        for layout in layouts
        for path in save_figures(draw_figures_of_runs(runs, chosen, layout), out, layout)
    ]
    files.append(write_table(table, Path(out) / PAIRS_FILE))
    notes = (*overlap_notes(runs), *mark_notes(runs))
    page = Path(out) / REPORT_FILE
    write_atomically(page, render_runs_page(runs, chosen, table, notes, files, wording))
    return Report(page, (*statements(table), *notes))


def overlap_notes(runs: Sequence[Run]) -> list[str]:
    """Return a sentence per run whose batches share so many samples that intervals mislead."""
    noted = {name: overlap_note(run) for name, run in named(runs).items()}
    return [f"{name}: {note}" for name, note in noted.items() if note]


def mark_notes(runs: Sequence[Run]) -> list[str]:
    """Return what is said of the marked scores of runs, behind their names where they are several.

    Args:
        runs: their tables.
    """
    found = {name: marks_of(run.scores).sentences for name, run in named(runs).items()}
    prefix = "{}: {}" if len(runs) > 1 else "{1}"
    return [prefix.format(name, text) for name, texts in found.items() for text in texts]


def _scored_pairs(run: Run) -> list[Pair]:
    """Return the paper's pairs of methods that the run holds."""
    scored = set(run.scores["method"].unique())
    pairs = [parse_pair(text) for text in DEFAULT_PAIRS]
    return [pair for pair in pairs if {pair.first.method, pair.second.method} <= scored]


def write_table(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV and return its path."""
    write_atomically(path, table.to_csv(index=False, lineterminator="\n"))
    return path
