"""Tables of the report page, built from the tables of a run: what each cell says and sorts by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import pandas as pd

from evalkit.pairs import last_rows
from evalkit.results import display_name, stages
from evalkit.spreads import format_number, spread

NEAR_FLOOR = 0.01
"""How far above the floor, as a share, a gamma is as good as the best one."""


@dataclass(frozen=True)
class Mark:
    """A sign behind a value that needs a word.

    Attributes:
        sign: one or two characters.
        meaning: what is said of the value, where the pointer rests and to screen readers.
    """

    sign: str
    meaning: str


@dataclass(frozen=True)
class Cell:
    """One table cell.

    Attributes:
        text: what it says.
        value: the number it stands for, by which a column sorts; text sorts by itself.
        note: a second, smaller line.
        warning: a third line that stands out.
        worse: whether the value is worse than SGD's.
        mark: behind the text.
    """

    text: str
    value: float | None = None
    note: str = ""
    warning: str = ""
    worse: bool = False
    mark: Mark | None = None

    @property
    def order(self) -> str:
        """The value as JavaScript reads numbers; empty for text."""
        if self.value is None:
            return ""
        if math.isinf(self.value):
            return "Infinity" if self.value > 0 else "-Infinity"
        return "NaN" if math.isnan(self.value) else repr(float(self.value))


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


def scores_table(shown: pd.DataFrame) -> Table:
    """Return checkpoint by method: mean ratio to SGD with one sigma, efficiency below it.

    Args:
        shown: of ``results.summarize``, one damping per method.
    """
    methods = list(shown["method"].unique())
    keys = zip(shown["checkpoint"], shown["method"], strict=True)
    cells = dict(zip(keys, _scores(shown), strict=True))
    rows = tuple(
        (
            Cell(name),
            Cell(f"{progress:.2f}", progress),
            *(cells.get((name, method), Cell("")) for method in methods),
        )
        for name, progress in _checkpoints(shown)
    )
    return Table(("checkpoint", "progress", *map(display_name, methods)), rows, names=2)


def damping_table(summary: pd.DataFrame) -> Table:
    """Return method and damping by stage: ratio to SGD with one sigma, efficiency below it."""
    chosen = stages(summary)
    keys = zip(*(summary[key] for key in ("method", "damping", "checkpoint")), strict=True)
    cells = dict(zip(keys, _scores(summary), strict=True))
    pairs = summary[["method", "damping"]].drop_duplicates().itertuples(index=False)
    rows = tuple(
        (
            Cell(display_name(str(method))),
            Cell(f"{damping:g}", float(str(damping))),
            *(cells.get((method, damping, name), Cell("")) for name in chosen.values()),
        )
        for method, damping in pairs
        if method != "sgd"
    )
    head = (f"{stage}: {checkpoint}" for stage, checkpoint in chosen.items())
    return Table(("method", "damping", *head), rows, names=2)


def pairs_table(table: pd.DataFrame) -> Table:
    """Return the ratio of each pair of methods at the end of training, and what it says.

    Args:
        table: of ``pairs.compare``.
    """
    rows = []
    for (pair,), last in last_rows(table):
        low, middle, high = (math.exp(last[key]) for key in ("low", "log_ratio", "high"))
        rows.append(
            (
                Cell(pair),
                Cell(str(last["checkpoint"])),
                Cell(format_number(middle), middle),
                Cell(f"{format_number(low)} to {format_number(high)}", low),
                Cell(str(last["statement"]), worse=last["statement"] == "worse"),
                Cell(str(last["batches"]), last["batches"]),
            )
        )
    head = ("pair", "checkpoint", "ratio (geometric mean)", "95% interval", "the first is")
    return Table((*head, "batches"), tuple(rows), names=2)


def best_table(table: pd.DataFrame) -> Table:
    """Return each method's best damping by stage, and how far near-zero damping is from it.

    Args:
        table: of ``sweeps.best_dampings``.
    """
    rows = tuple(
        (
            Cell(row["method"]),
            Cell(row["stage"]),
            Cell(f"{row['damping']:g}", row["damping"]),
            _number(row["ratio"]),
            Cell(f"{row['best_damping']:g}", row["best_damping"]),
            _number(row["best_ratio"]),
            _number(row["distance"]),
            Cell(
                f"{format_number(row['distance_low'])} to {format_number(row['distance_high'])}",
                row["distance_low"],
            ),
            Cell(str(row["batches"]), row["batches"]),
        )
        for _, row in table.iterrows()
    )
    head = ("method", "stage", "smallest damping", "ratio to SGD", "best damping", "ratio to SGD")
    return Table((*head, "smallest / best", "95% interval", "batches"), rows, names=2)


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
    means = zip(*(_means(floors, key) for key in columns), strict=True)
    rows = tuple(
        (
            Cell(row["checkpoint"]),
            Cell(f"{row['progress']:.2f}", row["progress"]),
            *cells,
            Cell(format_number(row["gram_rank"]), row["gram_rank"]),
            Cell(str(row["batches"]), row["batches"]),
        )
        for (_, row), cells in zip(floors.iterrows(), means, strict=True)
    )
    head = ("checkpoint", "progress", *columns.values(), "rank", "batches")
    return Table(head, rows, names=2)


def solver_table(summary: pd.DataFrame, scores: pd.DataFrame) -> Table:
    """Return what the solver reports, a row per checkpoint, method and damping that used one.

    Args:
        summary: of ``results.summarize``.
        scores: of the run, whose ``solver`` names it.
    """
    key = ["checkpoint", "method", "damping"]
    named = scores[scores["solver"].notna()]
    solvers = named.groupby(key, sort=False)["solver"].agg(lambda names: ", ".join(names.unique()))
    used = summary[summary["iterations"].notna()]
    above = _above_floor(scores).groupby(by=[scores[name] for name in key], sort=False).max()
    rows = tuple(
        (
            Cell(row["checkpoint"]),
            Cell(display_name(row["method"])),
            Cell(f"{row['damping']:g}", row["damping"]),
            Cell(str(solvers.get(tuple(row[key]), "–"))),
            Cell(f"{row['converged']:.0%}", row["converged"]),
            Cell(f"{row['iterations']:.1f}", row["iterations"]),
            Cell(format_number(row["relative_residual"]), row["relative_residual"]),
            Cell(_share(above[tuple(row[key])]), above[tuple(row[key])]),
        )
        for _, row in used.iterrows()
    )
    head = ("converged", "iterations", "largest residual", "above the floor")
    return Table((*key, "solver", *head), rows, names=2)


def solver_sentences(scores: pd.DataFrame) -> list[str]:
    """Return what stopping early can have changed, a sentence per method that ever did.

    No direction is below the floor, so that a gamma near it is near the best one, however the
    solver ended. Where the floor is out of reach, the distance to it says too much.

    Args:
        scores: of the run.
    """
    stopped = scores[scores["converged"].notna() & ~scores["converged"].fillna(True).astype(bool)]
    sentences = []
    for method, rows in stopped.groupby("method", sort=False):
        batches, above = len(rows), float(_above_floor(rows).max())
        of = int((scores["method"] == method).sum())
        name, base = display_name(str(method)), str(method).split(":")[0]
        text = f"{name} stopped before its tolerance in {batches} of {of} solves. "
        if above <= NEAR_FLOOR:
            text += (
                f"It does not matter: each of these gammas is at most {_share(above)} above the "
                "floor, and so at most that far above the gamma of the exact solution."
            )
        else:
            text += (
                f"The largest of these gammas is {_share(above)} above the floor, which the exact "
                f"solution need not reach: score again with {base}:max_iterations="
                f"{_more_iterations(rows)}, or with {base}:solver=direct."
            )
        sentences.append(text)
    return sentences


def _above_floor(scores: pd.DataFrame) -> pd.Series:
    """Return gamma / gamma_floor - 1 of each row."""
    return 1 / scores["efficiency"].astype(float) - 1


def _more_iterations(rows: pd.DataFrame) -> int:
    return 4 * int(rows["iterations"].max())


def _share(value: float) -> str:
    """Return a share as a percentage of two digits: 0.013%, 4.2%, 120%."""
    if not math.isfinite(value):
        return format_number(value)
    return f"{float(f'{100 * max(value, 0.0):.2g}'):g}%"


def provenance_table(provenance: Mapping[str, Any]) -> Table:
    """Return every entry of ``run.json`` but the checkpoints, nested ones a row each."""
    rows: list[tuple[Cell, Cell]] = []
    for key, value in provenance.items():
        if isinstance(value, Mapping):
            rows += [(Cell(f"{key}: {name}"), Cell(as_text(item))) for name, item in value.items()]
        elif key != "checkpoints":
            rows.append((Cell(key), Cell(as_text(value))))
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
    rows = tuple(tuple(_entry(item.get(key)) for key in columns) for item in entries)
    return Table(tuple(columns.values()), rows)


def as_text(value: Any) -> str:
    """Return a value of ``run.json`` as a cell shows it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(as_text, value)) if _listed(value) else str(value)


def _means(floors: pd.DataFrame, column: str) -> list[Cell]:
    """Return a cell per row: the mean, and one sigma in a line below it."""
    found = spread(floors, column)
    means = [(format_number(mean), mean) for mean in found.mean]
    pairs = zip(means, found.texts, strict=True)
    return [Cell(*mean, text.removeprefix(mean[0]).strip()) for mean, text in pairs]


def _number(value: float) -> Cell:
    return Cell(format_number(value), value)


def _scores(rows: pd.DataFrame) -> list[Cell]:
    """Return a cell per row: the ratio to SGD, and the efficiency below it."""
    texts = zip(spread(rows, "ratio").texts, spread(rows, "efficiency").texts, strict=True)
    return [_score(row, *pair) for (_, row), pair in zip(rows.iterrows(), texts, strict=True)]


def _score(row: pd.Series, ratio: str, efficiency: str) -> Cell:
    counts = {
        "uphill": row["ascents"],
        "infinite": row["infinite"],
        "undefined": row["undefined"],
    }
    warnings = [f"{kind} in {count} of {row['batches']}" for kind, count in counts.items() if count]
    return Cell(
        ratio,
        row["ratio_mean"],
        note=efficiency,
        warning=", ".join(warnings),
        worse=row["ratio_mean"] > 1,
    )


def _checkpoints(table: pd.DataFrame) -> list[tuple[str, float]]:
    rows = table.sort_values("step", kind="stable").drop_duplicates("checkpoint")
    return list(zip(rows["checkpoint"], rows["progress"], strict=True))


def _entry(value: Any) -> Cell:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Cell(as_text(value), float(value) if number else None)


def _listed(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, (list, tuple))
