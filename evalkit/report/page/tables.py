"""Tables of the report page, built from the tables of a run: what each cell says and sorts by."""

from __future__ import annotations

import math

import pandas as pd

from evalkit.names import MANY, arranged, display_name, family
from evalkit.report.page.cells import Cell, Table, number
from evalkit.report.page.curves import method_tags
from evalkit.results.marks import Mark, Marks, reach
from evalkit.results.pairs import last_rows
from evalkit.results.spreads import format_number, spread
from evalkit.results.summaries import evenly_chosen, stages

COLUMNS = 7
"""The most checkpoints, or runs, that a table shows beside one another at first."""
PAIR_HEAD = ("checkpoint", "ratio (geometric mean)", "95% interval", "the first is", "batches")
"""What :func:`pair_cells` says."""


def scores_table(shown: pd.DataFrame, marks: Marks) -> Table:
    """Return checkpoint by method: mean ratio to SGD with one sigma, efficiency below it.

    Many methods are rows, family by family, and checkpoints columns, of which some are shown at
    first.

    Args:
        shown: ``results.summarize``, one damping per method.
        marks: the marks of the same scores.
    """
    methods = arranged(shown["method"])
    tags = method_tags(methods)
    keys = zip(shown["checkpoint"], shown["method"], strict=True)
    cells = dict(zip(keys, score_cells(shown, marks), strict=True))
    checkpoints = _checkpoints(shown)
    if len(methods) > MANY:
        rows = tuple(
            (
                Cell(display_name(method), tag=tags[method]),
                *(cells.get((name, method), Cell("")) for name, _ in checkpoints),
            )
            for method in methods
        )
        columns = (f"{name} ({progress:.2f})" for name, progress in checkpoints)
        shown_first = evenly_chosen(len(checkpoints), COLUMNS)
        return Table(
            ("method", *columns),
            rows,
            groups=tuple(map(family, methods)),
            spare=frozenset(range(1, len(checkpoints) + 1)) - {1 + place for place in shown_first},
        )
    rows = tuple(
        (
            Cell(name),
            Cell(f"{progress:.2f}", progress),
            *(cells.get((name, method), Cell("")) for method in methods),
        )
        for name, progress in checkpoints
    )
    head = ("checkpoint", "progress", *map(display_name, methods))
    return Table(head, rows, names=2, tags=("", "", *tags.values()))


def damping_table(summary: pd.DataFrame, marks: Marks) -> Table:
    """Return method and damping by stage: ratio to SGD with one sigma, efficiency below it.

    Args:
        summary: the result of ``results.summarize``.
        marks: the marks of the same scores.
    """
    chosen = stages(summary)
    keys = zip(*(summary[key] for key in ("method", "damping", "checkpoint")), strict=True)
    cells = dict(zip(keys, score_cells(summary, marks), strict=True))
    tags = method_tags(arranged(summary["method"]))
    pairs = summary[["method", "damping"]].drop_duplicates()
    order = {method: place for place, method in enumerate(tags)}
    pairs = pairs.sort_values("method", key=lambda column: column.map(order), kind="stable")
    pairs = pairs[pairs["method"] != "sgd"]
    rows = tuple(
        (
            Cell(display_name(str(method)), tag=tags[str(method)]),
            Cell(f"{damping:g}", float(str(damping))),
            *(cells.get((method, damping, name), Cell("")) for name in chosen.values()),
        )
        for method, damping in pairs.itertuples(index=False)
    )
    head = (f"{stage}: {checkpoint}" for stage, checkpoint in chosen.items())
    groups = tuple(map(family, pairs["method"])) if len(tags) > MANY else ()
    return Table(("method", "damping", *head), rows, names=2, groups=groups)


def pairs_table(table: pd.DataFrame) -> Table:
    """Return the ratio of each pair of methods at the end of training, and what it says.

    Args:
        table: the result of ``pairs.compare``.
    """
    rows = tuple((Cell(pair), *pair_cells(last)) for (pair,), last in last_rows(table))
    return Table(("pair", *PAIR_HEAD), rows, names=2)


def pair_cells(last: pd.Series) -> tuple[Cell, ...]:
    """Return what is said of a pair at its last checkpoint, under :data:`PAIR_HEAD`.

    Args:
        last: a row of ``pairs.compare``.
    """
    low, middle, high = (math.exp(last[key]) for key in ("low", "log_ratio", "high"))
    return (
        Cell(str(last["checkpoint"])),
        Cell(format_number(middle), middle, mark=_of_pair(last)),
        Cell(f"{format_number(low)} to {format_number(high)}", low),
        Cell(str(last["statement"]), worse=last["statement"] == "worse"),
        Cell(str(last["batches"]), last["batches"]),
    )


def _of_pair(row: pd.Series) -> Mark | None:
    """Return the mark of a row of ``pairs.compare``."""
    if not row["mark"]:
        return None
    return Mark(row["mark"], f"rests on marked scores: the ratio {reach(row['error'])}")


def _signed(sign: str) -> Mark | None:
    return Mark(sign, "explained below the ratios to SGD") if sign else None


def best_table(table: pd.DataFrame) -> Table:
    """Return each method's best damping by stage, and how far near-zero damping is from it.

    Args:
        table: the result of ``sweeps.best_dampings``.
    """
    rows = tuple(
        (
            Cell(row["method"]),
            Cell(row["stage"]),
            Cell(f"{row['damping']:g}", row["damping"]),
            number(row["ratio"], _signed(row["mark"])),
            Cell(f"{row['best_damping']:g}", row["best_damping"]),
            number(row["best_ratio"], _signed(row["best_mark"])),
            number(row["distance"]),
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


def _means(floors: pd.DataFrame, column: str) -> list[Cell]:
    """Return a cell per row: the mean, and one sigma in a line below it."""
    found = spread(floors, column)
    means = [(format_number(mean), mean) for mean in found.mean]
    pairs = zip(means, found.texts, strict=True)
    return [Cell(*mean, text.removeprefix(mean[0]).strip()) for mean, text in pairs]


def score_cells(rows: pd.DataFrame, marks: Marks) -> list[Cell]:
    """Return a cell per row: the ratio to SGD, and the efficiency below it."""
    texts = zip(spread(rows, "ratio").texts, spread(rows, "efficiency").texts, strict=True)
    keys = zip(rows["checkpoint"], rows["method"], rows["damping"], strict=True)
    return [
        _score(row, *pair, marks.of_ratio(*key))
        for (_, row), pair, key in zip(rows.iterrows(), texts, keys, strict=True)
    ]


def _score(row: pd.Series, ratio: str, efficiency: str, mark: Mark | None) -> Cell:
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
        mark=mark,
    )


def _checkpoints(table: pd.DataFrame) -> list[tuple[str, float]]:
    rows = table.sort_values("step", kind="stable").drop_duplicates("checkpoint")
    return list(zip(rows["checkpoint"], rows["progress"], strict=True))
