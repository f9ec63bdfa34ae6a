"""Numbers from the tables of a run: means and spreads over batches, per checkpoint and method.

The same batches are used at every checkpoint and for every method, so that means are paired.
Gamma, the floor, and what is a quotient of them (ratio, efficiency) have geometric means: those of
a / b and b / a are inverse, and a ratio of means is the mean of ratios. The rest has arithmetic
means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from evalkit.counts import counted
from evalkit.names import MANY, arranged, display_name
from evalkit.results.marks import UNRELIABLE_SIGN, Marks, marks_of
from evalkit.results.remembered import Remembered
from evalkit.results.spreads import GEOMETRIC, format_number, format_percent, geometric_spread
from evalkit.storage.run_folder import Run
from evalkit.storage.tables import BATCHES_FILE, SCORES_FILE, averaged

_CHECKPOINT = ["checkpoint", "step", "progress"]
_CURVE_POINT = [*_CHECKPOINT, "method", "damping"]
_SCORES = averaged(SCORES_FILE)
_BEST = 5
"""Methods that the headline names, and the last, where there are many."""
_SUMMARIES = Remembered()
_SOLVER = ("converged", "iterations", "relative_residual")
_BATCHES = (*averaged(BATCHES_FILE), "floor_ratio")


def summarize(run: Run) -> pd.DataFrame:
    """Return means and spreads over batches, a row per checkpoint, method and damping.

    Infinite values stay infinite in the mean and leave the spread empty; undefined ones are left
    out. Both are counted.

    Returns:
        Columns checkpoint, step, progress, method, damping, batches; ``X_mean`` (geometric) and
        ``X_factor`` for X = gamma, ratio, efficiency; ``cosine_sgd_mean`` and ``cosine_sgd_std``;
        infinite and undefined, the batches whose ratio is so; ascents, the batches with slope < 0;
        converged (share), iterations (mean) and relative_residual (largest) of the solver, empty
        for direct methods.
    """
    return _SUMMARIES.of(run.scores, _summary).copy()


def _summary(scores: pd.DataFrame) -> pd.DataFrame:
    ordered = scores.sort_values(["step", "checkpoint", "batch"], kind="stable")
    ordered = ordered.astype(dict.fromkeys(_SOLVER, float))
    rows = []
    for key, group in ordered.groupby(_CURVE_POINT, sort=False, dropna=False):
        ratio = group["ratio"].to_numpy(float)
        rows.append(
            {
                **_named(_CURVE_POINT, key),
                "batches": len(group),
                **_spreads(group, _SCORES),
                "infinite": int(np.isinf(ratio).sum()),
                "undefined": int(np.isnan(ratio).sum()),
                "ascents": int((group["slope"] < 0).sum()),
                "converged": _numbers(group["converged"], "mean"),
                "iterations": _numbers(group["iterations"], "mean"),
                "relative_residual": _numbers(group["relative_residual"], "max"),
            }
        )
    return pd.DataFrame(rows)


def summarize_batches(run: Run) -> pd.DataFrame:
    """Return means and spreads over batches of what no method changes, a row per checkpoint.

    Returns:
        Columns checkpoint, step, progress, batches, num_samples (smallest), gram_rank (smallest);
        ``X_mean`` and ``X_std`` for X = loss, target_probability, imbalance, logit_imbalance;
        ``X_mean`` (geometric) and ``X_factor`` for X = gamma_floor and floor_ratio = gamma_floor /
        gamma of SGD.
    """
    ordered = run.batches.sort_values(["step", "checkpoint", "batch"], kind="stable")
    keys = pd.MultiIndex.from_frame(ordered[["checkpoint", "batch"]])
    ordered = ordered.assign(floor_ratio=floor_ratios(run.scores, keys.names).reindex(keys).values)
    rows = []
    for key, group in ordered.groupby(_CHECKPOINT, sort=False, dropna=False):
        rows.append(
            {
                **_named(_CHECKPOINT, key),
                "batches": len(group),
                "num_samples": int(group["num_samples"].min()),
                "gram_rank": _numbers(group["gram_rank"], "min"),
                **_spreads(group, _BATCHES),
            }
        )
    return pd.DataFrame(rows)


def near_zero(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each method at its smallest damping: what curves over training show.

    Args:
        summary: the result of :func:`summarize`, or scores.
    """
    smallest = summary.groupby("method", sort=False)["damping"].transform("min")
    return summary[summary["damping"] == smallest].reset_index(drop=True)


def stages(summary: pd.DataFrame) -> dict[str, str]:
    """Return the checkpoints at the start, middle and end of training, by stage; no one twice."""
    rows = summary.sort_values("step", kind="stable").drop_duplicates("checkpoint")
    names, progress = rows["checkpoint"].tolist(), rows["progress"].to_numpy(float)
    if len(names) < 3:
        return dict(zip(("end",) if len(names) == 1 else ("start", "end"), names, strict=True))
    centre = (progress[0] + progress[-1]) / 2
    middle = 1 + int(np.argmin(np.abs(progress[1:-1] - centre)))
    return {"start": names[0], "middle": names[middle], "end": names[-1]}


def evenly_chosen(count: int, most: int) -> tuple[int, ...]:
    """Return at most so many places of a sequence, evenly apart, the first and the last among them.

    Args:
        count: of the sequence.
        most: at least 1; a single one is the last.
    """
    if count <= most:
        return tuple(range(count))
    if most == 1:
        return (count - 1,)
    return tuple(np.linspace(0, count - 1, most).round().astype(int).tolist())


def final_table(run: Run) -> pd.DataFrame:
    """Return checkpoint by method, each cell ratio to SGD and efficiency, at near-zero damping.

    Both are geometric means over batches, efficiency in percent: ``0.623 85%``. That of SGD is the
    floor relative to SGD's gamma. A sign behind the ratio, ``15.9* 4%``, is that of
    :func:`shown_marks`.

    Returns:
        Text columns: checkpoint, progress, one per method under its display name, in the order of
        :func:`evalkit.names.arranged`.
    """
    summary = near_zero(summarize(run))
    floors, marks = summarize_batches(run), shown_marks(run)
    methods = arranged(summary["method"])
    columns = [list(floors["checkpoint"]), [f"{value:.2f}" for value in floors["progress"]]]
    for method in methods:
        group = summary[summary["method"] == method]
        named = ("checkpoint", "damping", "ratio_mean", "efficiency_mean")
        cells = {
            checkpoint: f"{format_number(ratio)}{marks.sign(checkpoint, method, damping)} "
            f"{format_percent(efficiency)}"
            for checkpoint, damping, ratio, efficiency in zip(
                *(group[column] for column in named), strict=True
            )
        }
        columns.append([cells.get(name, "") for name in columns[0]])
    # The same method, its settings in another order, reads alike.
    names = ["checkpoint", "progress", *map(display_name, methods)]
    return pd.DataFrame(dict(enumerate(columns))).set_axis(names, axis="columns")


def shown_marks(run: Run) -> Marks:
    """Return the marks of what tables of ratios and the headline show: near-zero damping."""
    return marks_of(near_zero(run.scores))


def headline(run: Run) -> str:
    """Return the result at the last checkpoint in a few sentences, best method first.

    Of many methods the best are named, and the last.

    A figure with the sign of :func:`shown_marks` that is not to be relied on is named as such.
    """
    last = summarize_batches(run).iloc[-1]
    summary = near_zero(summarize(run))
    rows = summary[(summary["checkpoint"] == last["checkpoint"]) & (summary["method"] != "sgd")]
    rows = rows.sort_values("ratio_mean", kind="stable")
    names = [display_name(method) for method in rows["method"]]
    marks = shown_marks(run)
    signs = [
        marks.sign(last["checkpoint"], method, damping)
        for method, damping in zip(rows["method"], rows["damping"], strict=True)
    ]
    places = [_times(value) + sign for value, sign in zip(rows["ratio_mean"], signs, strict=True)]
    where = "the end of training"
    if round(last["progress"], 3) < 1:
        where = f"checkpoint {last['checkpoint']} (progress {last['progress']:.2f})"
    floor = f"the floor is at {_times(last['floor_ratio_mean'])}"
    if not names:
        return f"At {where} {floor} SGD's gamma."
    told = [f", {name} at {place}" for name, place in zip(names, places, strict=True)][1:]
    if len(names) > MANY:
        told = [*told[: _BEST - 1], f", {len(told) - _BEST} more, and {told[-1][2:]}"]
    others = "".join(told)
    text = f"At {where} {names[0]} is at {places[0]} SGD's gamma{others}; {floor}."
    for name, (_, row) in zip(names, rows.iterrows(), strict=True):
        batches = counted(row["batches"], "batch")
        if row["infinite"]:
            text += f" {name}'s gamma is infinite in {row['infinite']} of {batches}."
        if row["ascents"]:
            text += f" {name} points uphill in {row['ascents']} of {batches}."
    if UNRELIABLE_SIGN in signs:
        text += f" What is marked {UNRELIABLE_SIGN} is not to be relied on."
    return text


def _times(value: float) -> str:
    return format_number(value) if math.isnan(value) else f"{format_number(value)}x"


def _named(names: list[str], key: Any) -> dict[str, Any]:
    return dict(zip(names, key, strict=True))


def floor_ratios(scores: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    """Return SGD's efficiency, gamma_floor / gamma of SGD: efficiency times ratio of any row.

    SGD's own row goes first: its ratio is 1.

    Args:
        scores: rows of scores.
        keys: columns that name a batch.
    """
    rows = scores.assign(
        floor_ratio=scores["efficiency"] * scores["ratio"], other=scores["method"] != "sgd"
    )
    rows = rows[np.isfinite(rows["floor_ratio"])].sort_values("other", kind="stable")
    return rows.groupby(list(keys))["floor_ratio"].first()


def _spreads(group: pd.DataFrame, columns: tuple[str, ...]) -> dict[str, float]:
    spreads = {}
    for column in columns:
        values = group[column].to_numpy(float)
        values = values[~np.isnan(values)]
        if column in GEOMETRIC:
            spreads[f"{column}_mean"], spreads[f"{column}_factor"] = geometric_spread(values)
        else:
            spreads[f"{column}_mean"], spreads[f"{column}_std"] = _spread(values)
    return spreads


def _spread(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation (divisor n - 1; 0 for one value)."""
    if not values.size:
        return math.nan, math.nan
    if not np.isfinite(values).all():
        return float(values.mean()), math.nan
    return float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else 0.0


def _numbers(column: pd.Series, statistic: str) -> float:
    """Return a statistic of the numbers that are there, NaN where none is."""
    return float(column.astype(float).agg(statistic))
