"""Matrix errors and layer scales as tables to read: means over batches.

Errors have arithmetic means, as they may be zero; efficiencies geometric ones, as in all tables.
"""

from __future__ import annotations

import math

import pandas as pd

from evalkit.names import display_name
from evalkit.results.spreads import format_number, format_percent, geometric_spread

_KEY = ["checkpoint", "method"]


MOST = 3
"""Checkpoints in a table that is printed."""


def shown_checkpoints(errors: pd.DataFrame) -> tuple[str, ...]:
    """Return the checkpoints that are printed: of many the first, the middle and the last."""
    names = list(dict.fromkeys(errors["checkpoint"]))
    if len(names) <= MOST:
        return tuple(names)
    return names[0], names[len(names) // 2], names[-1]


def error_table(errors: pd.DataFrame, all_blocks: str, whole: str) -> pd.DataFrame:
    """Return the errors of all blocks together and of the whole matrix, as texts.

    Args:
        errors: the columns of ``errors.csv``.
        all_blocks: what the rows of all blocks are called.
        whole: what those of the whole matrix are called.
    """
    rows = []
    for (checkpoint, method), group in errors.groupby(_KEY, sort=False):
        together = group[group["block"] == all_blocks]
        matrix = group[group["block"] == whole]
        layers = group[~group["block"].isin([all_blocks, whole])]
        by_layer = layers.groupby("block", sort=False)["frobenius"].mean().dropna()
        worst = "" if by_layer.empty else str(by_layer.idxmax())
        rows.append(
            {
                "checkpoint": str(checkpoint),
                "method": display_name(str(method)),
                "Error 1": _interval(together),
                "Error 2": _mean(together["spectrum"]),
                "worst layer": worst and f"{format_number(by_layer.max())} ({worst})",
                "whole matrix": _interval(matrix),
                "between layers": _mean(matrix["off_diagonal"]),
            }
        )
    return pd.DataFrame(rows)


def layer_table(errors: pd.DataFrame, checkpoint: str, leave: tuple[str, ...]) -> pd.DataFrame:
    """Return the Frobenius error of every layer at one checkpoint, as texts, a column a method.

    Args:
        errors: the columns of ``errors.csv``.
        checkpoint: its name.
        leave: what the rows are called that are of no layer.
    """
    here = errors[(errors["checkpoint"] == checkpoint) & ~errors["block"].isin(leave)]
    rows = []
    for block, group in here.groupby("block", sort=False):
        row = {"layer": str(block), "parameters": f"{int(group['parameters'].iloc[0]):,}"}
        for method, own in group.groupby("method", sort=False):
            row[display_name(str(method))] = _interval(own)
        rows.append(row)
    return pd.DataFrame(rows)


def scale_table(scales: pd.DataFrame) -> pd.DataFrame:
    """Return efficiencies with and without the best layer scales, as texts.

    Args:
        scales: the columns of ``scales.csv``.
    """
    rows = []
    several = scales["damping"].nunique() > 1
    for key, group in scales.groupby([*_KEY, "damping"], sort=False):
        checkpoint, method, damping = key
        first = group.drop_duplicates("batch")
        row = {"checkpoint": str(checkpoint), "method": display_name(str(method))}
        if several:
            row["damping"] = f"{damping:g}"
        for column, head in (("efficiency", "as it is"), ("scaled_efficiency", "scaled")):
            row[head] = format_percent(geometric_spread(first[column].to_numpy(float))[0])
        by_layer = group.groupby("block", sort=False)["relative_scale"].mean().dropna()
        row["scales from"] = row["to"] = ""
        if not by_layer.empty:
            low, high = by_layer.min(), by_layer.max()
            row["scales from"] = f"{format_number(low)} ({by_layer.idxmin()})"
            row["to"] = f"{format_number(high)} ({by_layer.idxmax()})"
        rows.append(row)
    return pd.DataFrame(rows)


def _mean(values: pd.Series) -> str:
    mean = float(values.mean()) if len(values) else math.nan
    return "" if math.isnan(mean) else format_number(mean)


def _interval(rows: pd.DataFrame) -> str:
    """Return a mean error; its interval where that of the probes or of rounding shows."""
    text, (low, high) = _mean(rows["frobenius"]), (rows["low"].mean(), rows["high"].mean())
    ends = format_number(float(low)), format_number(float(high))
    if not text or ends[0] == ends[1] or high - low <= 1e-3 * high:
        return text
    if high < 1e-6:
        return f"below {format_number(float(high))}"
    return f"{text} ({ends[0]} to {ends[1]})"
