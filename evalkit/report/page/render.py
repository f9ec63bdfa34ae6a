"""The report of a run: one HTML page that holds its charts, tables, data and provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from evalkit.counts import counted
from evalkit.overlap import overlap_note
from evalkit.report.page.bokeh_figures import document_json
from evalkit.report.page.charts import Chart, draw_charts, key_groups, run_methods
from evalkit.report.page.records import as_text, checkpoints_table, provenance_table
from evalkit.report.page.scripts import BOKEH_VERSION, chart_library, compressed, script_hash
from evalkit.report.page.solver import solver_sentences, solver_table
from evalkit.report.page.swatches import swatch
from evalkit.report.page.tables import (
    batches_table,
    best_table,
    damping_table,
    pairs_table,
    scores_table,
)
from evalkit.results.intervals import FEWEST_BATCHES
from evalkit.results.marks import marks_of
from evalkit.results.summaries import headline, near_zero, shown_marks, summarize, summarize_batches
from evalkit.results.sweeps import is_sweep
from evalkit.results.undefined import undefined_sentences
from evalkit.storage.lost_rows import failed_cells
from evalkit.storage.parquet import own_path
from evalkit.storage.run_folder import REPORT_FILE, Run
from evalkit.storage.tables import BATCHES_FILE, SCORES_FILE

EMBEDDED_BYTES = 2_000_000
"""The most that a page carries of one table, as text; of a larger one it has a link."""


@dataclass(frozen=True, eq=False)
class Derived:
    """What is computed from a run besides means.

    Attributes:
        pairs: the result of ``pairs.compare``; empty without pairs.
        dampings: the result of ``sweeps.best_dampings``; empty without a sweep.
    """

    pairs: pd.DataFrame
    dampings: pd.DataFrame


@dataclass(frozen=True)
class Download:
    """A table that the page offers as a file.

    Attributes:
        name: the name of the file.
        size: in kilobytes.
        content: the file, gzipped as base64; empty where it is only linked, beside the page.
    """

    name: str
    size: int
    content: str


def render_page(
    run: Run,
    derived: Derived,
    files: Sequence[Path] = (),
    wording: Callable[[str], str] = str,
) -> str:
    """Return the page as HTML that loads nothing from elsewhere.

    Args:
        run: its tables and provenance.
        derived: tables made of it.
        files: figures and tables in the run's folder: figures are named, tables offered.
        wording: makes of a sentence that names arguments what its reader knows.
    """
    return fill(
        REPORT_FILE,
        pictures=[
            path.relative_to(run.folder).as_posix() for path in files if path.suffix != ".csv"
        ],
        downloads=[
            *(download(own_path(run.folder / name)) for name in (SCORES_FILE, BATCHES_FILE)),
            *(download(path) for path in files if path.suffix == ".csv"),
        ],
        **_charts(run, derived.pairs),
        **_summary(run, wording),
        pairs=pairs_table(derived.pairs),
        statements=len(derived.pairs),
        fewest=FEWEST_BATCHES,
        overlap=overlap_note(run),
        best=best_table(derived.dampings),
        provenance=provenance_table(run.provenance),
        hashes=checkpoints_table(run.provenance),
    )


def fill(name: str, **content: Any) -> str:
    """Return a page from its template, with the script, the style and the chart library inside.

    Args:
        name: of the template.
        content: what it is filled with.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["swatch"] = swatch
    # Bokeh reads models in order: one is whole where it comes first, and referred to afterwards.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    script, library = _asset("report.js"), chart_library()
    return environment.get_template(name).render(
        style=_asset("report.css"),
        script=script,
        script_hashes=[script_hash(script), script_hash(library)],
        library=compressed(library.encode("utf-8")),
        library_version=BOKEH_VERSION,
        **content,
    )


def download(path: Path) -> Download:
    """Return a table as the page offers it."""
    content = path.read_bytes()
    embedded = compressed(content) if len(content) <= EMBEDDED_BYTES else ""
    return Download(path.name, -(-len(content) // 1000), embedded)


def embedded(charts: Sequence[Chart]) -> Mapping[str, Any]:
    """Return what a template says of charts: by kind, and the document that draws them."""
    content = document_json([chart.figure for chart in charts])
    roots = {
        root["id"]: f"chart-{chart.name}"
        for root, chart in zip(content["roots"], charts, strict=True)
    }
    return {
        "figures": [(kind, list(found)) for kind, found in groupby(charts, attrgetter("kind"))],
        "chart_document": {"document": content, "roots": roots},
    }


def _charts(run: Run, pairs: pd.DataFrame) -> Mapping[str, Any]:
    """Return what the template says of charts."""
    return {
        **embedded(draw_charts(run, pairs)),
        "key_groups": key_groups(run_methods(run)),
        "spread": bool(summarize_batches(run)["batches"].max() > 1),
    }


def _summary(run: Run, wording: Callable[[str], str]) -> Mapping[str, Any]:
    """Return what the template says of results."""
    summary, floors = summarize(run), summarize_batches(run)
    shown, marks = near_zero(summary), marks_of(run.scores)
    task = run.provenance.get("task")
    return {
        "task": as_text(task) if task else run.folder.resolve().name,
        "headline": headline(run),
        "gaps": undefined_sentences(run),
        "finished": bool(run.provenance.get("finished")),
        "failed_cells": failed_cells(run),
        "checkpoints": counted(len(floors), "checkpoint"),
        "batches": _range(floors["batches"], "batch"),
        "samples": _range(floors["num_samples"], "sample"),
        "dampings": [f"{value:g}" for value in sorted(shown["damping"].unique())],
        "sweep": is_sweep(run),
        "scores": scores_table(shown, shown_marks(run)),
        "mark_sentences": [wording(sentence).partition(" ") for sentence in marks.sentences],
        "damping_scores": damping_table(summary, marks),
        "batch_means": batches_table(floors),
        "solver": solver_table(summary, run.scores),
        "solver_sentences": solver_sentences(run.scores),
    }


def _asset(name: str) -> str:
    return resources.files("evalkit.report.page").joinpath(name).read_text("utf-8")


def _range(counts: pd.Series, thing: str) -> str:
    low, high = int(counts.min()), int(counts.max())
    return counted(high, thing) if low == high else f"{low:,} to {counted(high, thing)}"
