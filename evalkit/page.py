"""The report of a run: one HTML page that holds its figures, tables, provenance and definitions."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
import pandas as pd

from evalkit.figures import write_figures
from evalkit.results import (
    display_name,
    format_number,
    format_spread,
    headline,
    near_zero,
    stages,
    summarize,
    summarize_batches,
)
from evalkit.run import FIGURES_FOLDER, REPORT_FILE, Run, read_run
from evalkit.tables import write_atomically


@dataclass(frozen=True)
class Cell:
    """One table cell.

    Attributes:
        text: what it says.
        note: a second, smaller line.
        warning: a third line that stands out.
        worse: whether the value is worse than SGD's.
    """

    text: str
    note: str = ""
    warning: str = ""
    worse: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        head: column names.
        rows: a cell per column.
        names: leading columns that name the row.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    names: int = 1


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        name: of its file, which also chooses its caption.
        source: the SVG as a data URI.
    """

    name: str
    source: str


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write the figures and ``report.html`` of a RUN.

    Args:
        folder: the RUN; its tables stay as they are.

    Returns:
        The page.

    Raises:
        EvalkitError: the run cannot be read, or the folder cannot be written.
    """
    run = read_run(folder)
    files = write_figures(run, run.folder / FIGURES_FOLDER)
    pictures = [
        Picture(
            path.stem, "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
        )
        for path in files
        if path.suffix == ".svg"
    ]
    page = run.folder / REPORT_FILE
    write_atomically(page, render_page(run, pictures))
    return page


def render_page(run: Run, pictures: Sequence[Picture]) -> str:
    """Return the page as HTML that loads nothing from elsewhere.

    Args:
        run: its tables and provenance.
        pictures: shown in order.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = resources.files("evalkit").joinpath(REPORT_FILE).read_text("utf-8")
    summary, floors = summarize(run), summarize_batches(run)
    shown = near_zero(summary)
    task = run.provenance.get("task")
    return environment.from_string(template).render(
        task=_text(task) if task else run.folder.resolve().name,
        headline=headline(run),
        finished=bool(run.provenance.get("finished")),
        checkpoints=_count(str(len(floors)), "checkpoint"),
        batches=_count(_range(floors["batches"]), "batch"),
        samples=_range(floors["num_samples"]),
        dampings=[f"{value:g}" for value in sorted(shown["damping"].unique())],
        sweep=summary["damping"].nunique() > 1,
        pictures=pictures,
        scores=scores_table(shown),
        damping_scores=damping_table(summary),
        batch_means=batches_table(floors),
        solver=solver_table(summary),
        provenance=provenance_table(run.provenance),
        hashes=checkpoints_table(run.provenance),
    )


def scores_table(shown: pd.DataFrame) -> Table:
    """Return checkpoint by method: ratio to SGD with one sigma, efficiency below it.

    Args:
        shown: of ``results.summarize``, one damping per method.
    """
    methods = list(shown["method"].unique())
    cells = {(row["checkpoint"], row["method"]): _score(row) for _, row in shown.iterrows()}
    rows = tuple(
        (
            Cell(name),
            Cell(f"{progress:.2f}"),
            *(cells.get((name, method), Cell("")) for method in methods),
        )
        for name, progress in _checkpoints(shown)
    )
    return Table(("checkpoint", "progress", *map(display_name, methods)), rows, names=2)


def damping_table(summary: pd.DataFrame) -> Table:
    """Return method and damping by stage: ratio to SGD with one sigma, efficiency below it."""
    chosen = stages(summary)
    cells = {
        (row["method"], row["damping"], row["checkpoint"]): _score(row)
        for _, row in summary.iterrows()
    }
    pairs = summary[["method", "damping"]].drop_duplicates().itertuples(index=False)
    rows = tuple(
        (
            Cell(display_name(str(method))),
            Cell(f"{damping:g}"),
            *(cells.get((method, damping, name), Cell("")) for name in chosen.values()),
        )
        for method, damping in pairs
        if method != "sgd"
    )
    head = (f"{stage}: {checkpoint}" for stage, checkpoint in chosen.items())
    return Table(("method", "damping", *head), rows, names=2)


def batches_table(floors: pd.DataFrame) -> Table:
    """Return checkpoint by what no method changes, means with one sigma."""
    columns = {
        "loss": "loss",
        "target_probability": "target probability",
        "imbalance": "imbalance",
        "logit_imbalance": "logit imbalance",
        "gamma_floor": "floor",
        "floor_ratio": "floor / SGD",
    }
    rows = tuple(
        (
            Cell(row["checkpoint"]),
            Cell(f"{row['progress']:.2f}"),
            *(_mean(row[f"{key}_mean"], row[f"{key}_std"]) for key in columns),
            Cell(format_number(row["gram_rank"])),
            Cell(str(row["batches"])),
        )
        for _, row in floors.iterrows()
    )
    head = ("checkpoint", "progress", *columns.values(), "rank", "batches")
    return Table(head, rows, names=2)


def solver_table(summary: pd.DataFrame) -> Table:
    """Return what the solver reports, a row per checkpoint, method and damping that used one."""
    used = summary[summary["iterations"].notna()]
    rows = tuple(
        (
            Cell(row["checkpoint"]),
            Cell(display_name(row["method"])),
            Cell(f"{row['damping']:g}"),
            Cell(f"{row['converged']:.0%}"),
            Cell(f"{row['iterations']:.1f}"),
            Cell(format_number(row["relative_residual"])),
        )
        for _, row in used.iterrows()
    )
    head = ("checkpoint", "method", "damping", "converged", "iterations", "largest residual")
    return Table(head, rows, names=2)


def provenance_table(provenance: Mapping[str, Any]) -> Table:
    """Return every entry of ``run.json`` but the checkpoints, nested ones a row each."""
    rows: list[tuple[Cell, Cell]] = []
    for key, value in provenance.items():
        if isinstance(value, Mapping):
            rows += [(Cell(f"{key}: {name}"), Cell(_text(item))) for name, item in value.items()]
        elif key != "checkpoints":
            rows.append((Cell(key), Cell(_text(value))))
    return Table(("entry", "value"), tuple(rows))


def checkpoints_table(provenance: Mapping[str, Any]) -> Table:
    """Return what ``run.json`` says about each checkpoint, hashes included."""
    columns = {
        "name": "checkpoint",
        "step": "step",
        "epoch": "epoch",
        "progress": "progress",
        "training_loss": "training loss",
        "validation_accuracy": "validation accuracy",
        "sha256": "SHA-256",
    }
    found = provenance.get("checkpoints")
    entries = [item for item in found if isinstance(item, Mapping)] if _listed(found) else []
    rows = tuple(tuple(Cell(_text(item.get(key))) for key in columns) for item in entries)
    return Table(tuple(columns.values()), rows)


def _mean(mean: float, sigma: float) -> Cell:
    return Cell(format_number(mean), note=f"± {format_number(sigma)}" if sigma > 0 else "")


def _score(row: pd.Series) -> Cell:
    counts = {
        "uphill": row["ascents"],
        "infinite": row["infinite"],
        "undefined": row["undefined"],
    }
    warnings = [f"{kind} in {count} of {row['batches']}" for kind, count in counts.items() if count]
    return Cell(
        format_spread(row["ratio_mean"], row["ratio_std"]),
        note=format_spread(row["efficiency_mean"], row["efficiency_std"]),
        warning=", ".join(warnings),
        worse=row["ratio_mean"] > 1,
    )


def _checkpoints(table: pd.DataFrame) -> list[tuple[str, float]]:
    rows = table.sort_values("step", kind="stable").drop_duplicates("checkpoint")
    return list(zip(rows["checkpoint"], rows["progress"], strict=True))


def _range(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"


def _count(number: str, thing: str) -> str:
    if number == "1":
        return f"1 {thing}"
    return f"{number} {thing}{'es' if thing.endswith('ch') else 's'}"


def _listed(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, (list, tuple))


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_text, value)) if _listed(value) else str(value)
