"""The page of several runs: their pairs, ratios at the end of training, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from evalkit.counts import counted
from evalkit.names import MANY, arranged, display_name, family
from evalkit.report.page.cells import Cell, Table
from evalkit.report.page.curves import Key
from evalkit.report.page.records import as_text
from evalkit.report.page.render import download, embedded, fill
from evalkit.report.page.runs_charts import charts_of_runs, run_keys
from evalkit.report.page.tables import COLUMNS, PAIR_HEAD, pair_cells, score_cells
from evalkit.results.pairs import Pair, last_rows, named
from evalkit.results.summaries import (
    evenly_chosen,
    near_zero,
    shown_marks,
    summarize,
    summarize_batches,
)
from evalkit.storage.run_folder import Run


def render_runs_page(
    runs: Sequence[Run],
    pairs: Sequence[Pair],
    table: pd.DataFrame,
    notes: Sequence[str],
    files: Sequence[Path],
    wording: Callable[[str], str] = str,
) -> str:
    """Return the page of several runs as HTML that loads nothing from elsewhere.

    Args:
        runs: in their order.
        pairs: of methods.
        table: the result of ``pairs.compare_runs``.
        notes: what has to be said of their scores, a sentence each.
        files: figures and tables in the folder of the page, in which figures are named and tables
            offered.
        wording: makes of a sentence that names arguments what its reader knows.
    """
    by_name = named(runs)
    keys = run_keys(list(by_name))
    methods = [side.method for pair in pairs for side in (pair.first, pair.second)]
    return fill(
        "runs.html",
        task=counted(len(runs), "run"),
        findings=findings(table),
        notes=[wording(note) for note in notes],
        downloads=[download(path) for path in files if path.suffix == ".csv"],
        pictures=[path.name for path in files if path.suffix != ".csv"],
        key_groups=[("", keys)],
        pairs=runs_pairs_table(table, keys),
        statements=len(table),
        scores=end_table(by_name, keys),
        records=records_table(by_name),
        **embedded(charts_of_runs(by_name, table, list(dict.fromkeys(methods)))),
    )


def findings(pairs: pd.DataFrame) -> list[str]:
    """Return a sentence per pair: in how many runs the first is better or worse at the end.

    Args:
        pairs: the result of ``pairs.compare_runs``.
    """
    ends = pd.DataFrame([last for _, last in last_rows(pairs)])
    told = []
    for label, rows in ends.groupby("pair", sort=False):
        counts = rows["statement"].value_counts()
        parts = [f"{kind} in {counts[kind]}" for kind in counts.index]
        told.append(
            f"{label}: {', '.join(parts)} of {counted(len(rows), 'run')} at the last checkpoint."
        )
    return told


def runs_pairs_table(pairs: pd.DataFrame, keys: Sequence[Key]) -> Table:
    """Return the ratio of each pair in each run at the end of training, in groups by pair.

    Args:
        pairs: the result of ``pairs.compare_runs``.
        keys: of the runs.
    """
    tags = {key.name: key.tag for key in keys}
    order = {label: place for place, label in enumerate(pairs["pair"].unique())}
    found = sorted(last_rows(pairs), key=lambda item: order[item[0][1]])
    rows = tuple(
        (Cell(run, tag=tags[run]), Cell(pair), *pair_cells(last)) for (run, pair), last in found
    )
    groups = tuple(pair for (_, pair), _ in found)
    return Table(("run", "pair", *PAIR_HEAD), rows, names=3, groups=groups, grouped_by="pair")


def end_table(runs: Mapping[str, Run], keys: Sequence[Key]) -> Table:
    """Return method by run: ratio to SGD and efficiency at the last checkpoint of each.

    Args:
        runs: by name.
        keys: of the runs.
    """
    cells: dict[tuple[str, str], Cell] = {}
    scored: list[str] = []
    for name, run in runs.items():
        shown = near_zero(summarize(run))
        last = shown[shown["step"] == shown["step"].max()]
        scored += map(str, last["method"])
        found = zip(last["method"], score_cells(last, shown_marks(run)), strict=True)
        cells |= {(name, str(method)): cell for method, cell in found}
    methods = arranged(scored)
    rows = tuple(
        (Cell(display_name(method)), *(cells.get((name, method), Cell("–")) for name in runs))
        for method in methods
    )
    first = {1 + place for place in evenly_chosen(len(runs), COLUMNS)}
    return Table(
        ("method", *runs),
        rows,
        tags=("", *(key.tag for key in keys)),
        groups=tuple(map(family, methods)) if len(methods) > MANY else (),
        spare=frozenset(range(1, len(runs) + 1)) - first,
        columns="runs",
    )


def records_table(runs: Mapping[str, Run]) -> Table:
    """Return what each run is: folder, task, checkpoints, batches, samples, whether it is done."""
    rows = []
    for name, run in runs.items():
        floors = summarize_batches(run)
        batches, samples = int(floors["batches"].max()), int(floors["num_samples"].min())
        rows.append(
            (
                Cell(name),
                Cell(as_text(run.provenance.get("task"))),
                Cell(str(len(floors)), len(floors)),
                Cell(str(batches), batches),
                Cell(str(samples), samples),
                Cell("yes" if run.provenance.get("finished") else "no"),
                Cell(str(run.folder)),
            )
        )
    head = ("run", "task", "checkpoints", "batches", "samples", "finished", "folder")
    return Table(head, tuple(rows), names=2)
