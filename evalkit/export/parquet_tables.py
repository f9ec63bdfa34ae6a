"""Parquet: the tables of a run and its means, each with ``run.json`` in its metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from evalkit.export.content import provenance_text
from evalkit.export.series import gaps_and_marks
from evalkit.extras import required
from evalkit.results.marks import marks_of
from evalkit.results.summaries import summarize, summarize_batches
from evalkit.storage.run_folder import Run

PROVENANCE, NOTES = b"evalkit.run", b"evalkit.notes"
"""Keys of the metadata: ``run.json``, and sentences on what is not to be relied on."""


def writer() -> Callable[[Run, Path], tuple[str, ...]]:
    """Return the function that writes the tables of a run into a folder.

    Raises:
        EvalkitError: there is no pyarrow.
    """
    arrow = required("pyarrow", "an export to Parquet", "export")
    parquet = required("pyarrow.parquet", "an export to Parquet", "export")

    def write(run: Run, folder: Path) -> tuple[str, ...]:
        notes = gaps_and_marks(run)
        told = (provenance_text(run.provenance), "\n".join(notes))
        about = {key: text.encode() for key, text in zip((PROVENANCE, NOTES), told, strict=True)}
        for name, frame in tables_of(run).items():
            table = arrow.Table.from_pandas(frame, preserve_index=False)
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), **about})
            parquet.write_table(table, folder / f"{name}.parquet")
        return notes

    return write


def tables_of(run: Run) -> dict[str, pd.DataFrame]:
    """Return the tables that are exported, by name; what is not defined is empty in them.

    ``summary`` has the columns of :func:`evalkit.results.summaries.summarize` and, for gamma and
    for the ratio to SGD, the sign of its mark and what it means; ``batch_summary`` is
    :func:`evalkit.results.summaries.summarize_batches`.
    """
    summary, marks = summarize(run), marks_of(run.scores)
    keys = list(zip(summary["checkpoint"], summary["method"], summary["damping"], strict=True))
    for column, judged in (("gamma", marks.of_gamma), ("ratio", marks.of_ratio)):
        found = [judged(str(name), str(method), float(damping)) for name, method, damping in keys]
        summary[f"{column}_mark"] = [mark.sign if mark else "" for mark in found]
        summary[f"{column}_meaning"] = [mark.meaning if mark else "" for mark in found]
    return {
        "scores": run.scores,
        "batches": run.batches,
        "failures": run.failures,
        "summary": summary,
        "batch_summary": summarize_batches(run),
    }
