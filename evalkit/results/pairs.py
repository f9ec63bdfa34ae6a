"""Pairs of methods on the same batches: how many times the gamma of the other, and how surely."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evalkit.counts import counted
from evalkit.doubts import mean_error, ratio_errors
from evalkit.errors import EvalkitError
from evalkit.names import display_name
from evalkit.registry import suggest
from evalkit.results.intervals import (
    FEWEST_BATCHES,
    LOG_RATIO,
    Interval,
    differences,
    holm,
    interval,
)
from evalkit.results.marks import Marks, marks_of, worst
from evalkit.results.spreads import geometric_spread
from evalkit.storage.run_folder import Run

DEFAULT_PAIRS = ("ef/sgd", "ief/sgd", "sf/sgd")
_CHECKPOINT = ["checkpoint", "step", "progress"]


@dataclass(frozen=True)
class Member:
    """One side of a pair.

    Attributes:
        method: as scored, its settings included.
        damping: None for the smallest that was scored.
    """

    method: str
    damping: float | None = None

    @property
    def label(self) -> str:
        """How it is written in figures and tables."""
        name = display_name(self.method)
        return name if self.damping is None else f"{name}, λ = {self.damping:g}"


@dataclass(frozen=True)
class Pair:
    """Two methods whose gammas are divided: first / second."""

    first: Member
    second: Member

    @property
    def label(self) -> str:
        """How it is written in figures and tables."""
        return f"{self.first.label} / {self.second.label}"


def parse_pair(text: str) -> Pair:
    """Return the pair written as ``METHOD[@DAMPING]/METHOD[@DAMPING]``.

    Raises:
        EvalkitError: the text has another form.
    """
    members = []
    for part in text.split("/"):
        method, at, damping = part.strip().partition("@")
        try:
            members.append(Member(method, float(damping) if at else None))
        except ValueError:
            method = ""
        if not method:
            break
    if len(members) != 2 or not all(member.method for member in members):
        raise EvalkitError(
            f"expected a pair of methods such as ief/sgd or ef@1e-6/ief, found '{text}'; "
            "write METHOD[@DAMPING]/METHOD[@DAMPING]"
        )
    return Pair(members[0], members[1])


def compare(run: Run, pairs: Iterable[Pair]) -> pd.DataFrame:
    """Return gamma of one method divided by that of another, a row per pair and checkpoint.

    Every number is paired by batch, and the mean over batches is geometric. The statements of all
    rows are made at once and corrected for their number by Holm's method: an interval, which
    stands for its row alone, may exclude 1 where the statement is undecided.

    Args:
        run: its tables.
        pairs: the pairs of methods that it scored.

    Returns:
        Columns pair, checkpoint, step, progress, batches; left_out, the batches in which one of
        the two has no gamma; ratio_mean and ratio_factor, geometric
        mean of the ratio over batches and one geometric sigma; log_ratio, low, high: mean of ln
        ratio and its 95% interval; p_value, of the row alone; error, the stated one of ratio_mean,
        NaN where there is none; mark, the sign of scores that it rests on; corrected_p_value, for
        all rows; statement: what the latter says about the first method, undecided below
        :data:`evalkit.results.intervals.FEWEST_BATCHES` batches and within the stated error.

    Raises:
        EvalkitError: a method or damping was not scored.
    """
    marks = marks_of(run.scores)
    return _stated([row for pair in pairs for row in _rows(run, pair, marks)])


def _rows(run: Run, pair: Pair, marks: Marks) -> Iterator[dict[str, Any]]:
    """Yield the row of a pair at each checkpoint, without a statement."""
    members = (pair.first, pair.second)
    first, second = (_gammas(run, member) for member in members)
    joined = first.join(second.add_suffix("_other")).dropna(subset=["gamma", "gamma_other"])
    same = pair.first == pair.second
    every = run.batches.groupby("checkpoint", sort=False)["batch"].nunique()
    for key, group in joined.groupby(level=_CHECKPOINT, sort=False):
        one, other = group["gamma"].to_numpy(float), group["gamma_other"].to_numpy(float)
        dampings = (group["damping"].iloc[0], group["damping_other"].iloc[0])
        sides = [
            marks.of_gamma(str(key[0]), member.method, float(damping))
            for member, damping in zip(members, dampings, strict=True)
        ]
        errors = ratio_errors(group["error"], group["error_other"])
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = np.where(one == other, 1.0, one / other)
        found = interval(differences(LOG_RATIO.transform(one), LOG_RATIO.transform(other)))
        mean, factor = geometric_spread(ratios)
        yield {
            "pair": pair.label,
            **dict(zip(_CHECKPOINT, key, strict=True)),
            "batches": len(group),
            "left_out": max(0, int(every.get(key[0], 0)) - len(group)),
            "ratio_mean": mean,
            "ratio_factor": factor,
            "log_ratio": found.mean,
            "low": found.low,
            "high": found.high,
            "p_value": found.p_value,
            "error": 0.0 if same else mean_error(errors),
            "mark": "" if same else worst(sides),
        }


def _stated(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows with the statements that hold for all of them at once."""
    corrected = holm([row["p_value"] for row in rows])
    return pd.DataFrame(
        {
            **row,
            "corrected_p_value": p_value,
            "statement": "undecided"
            if _within_error(row)
            else _interval(row).statement(LOG_RATIO, p_value),
        }
        for row, p_value in zip(rows, corrected, strict=True)
    )


def _within_error(row: Mapping[str, Any]) -> bool:
    """Whether the ratio of a row may be 1 by its stated error."""
    return abs(row["log_ratio"]) <= math.log1p(row["error"])


def _interval(row: Mapping[str, Any]) -> Interval:
    return Interval(*(row[name] for name in ("log_ratio", "low", "high", "batches", "p_value")))


def compare_runs(runs: Sequence[Run], pairs: Sequence[Pair]) -> pd.DataFrame:
    """Return a table as of :func:`compare` of all runs, with a first column ``run``.

    The statements on all runs are made at once, and corrected for their number together.
    """
    rows = [
        {"run": name, **row}
        for name, run in named(runs).items()
        for pair in pairs
        for row in _rows(run, pair, marks_of(run.scores))
    ]
    return _stated(rows)


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """Return runs by task, or by folder where tasks are the same.

    Raises:
        EvalkitError: a run is given twice.
    """
    folders = [run.folder.resolve() for run in runs]
    twice = {folder for folder in folders if folders.count(folder) > 1}
    if twice:
        raise EvalkitError(f"expected different runs, found {twice.pop()} twice; name it once")
    tasks = [str(run.provenance.get("task") or run.folder.resolve().name) for run in runs]
    if len(set(tasks)) == len(tasks):
        return dict(zip(tasks, runs, strict=True))
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return dict(zip(names, runs, strict=True))


def statements(table: pd.DataFrame) -> list[str]:
    """Return a sentence per pair (and run) at its last checkpoint, and what they rest on.

    ``iEF / SGD at step-000920: 0.574 (0.55 to 0.60, 20 batches), better``, with the geometric mean
    and its 95% interval.

    Args:
        table: the result of :func:`compare` or :func:`compare_runs`.
    """
    lines = []
    for key, last in last_rows(table):
        low, middle, high = np.exp([last["low"], last["log_ratio"], last["high"]])
        count, left_out = int(last["batches"]), int(last.get("left_out", 0))
        shown = (f"{count} of " if left_out else "") + counted(count + left_out, "batch")
        lines.append(
            f"{', '.join(key)} at {last['checkpoint']}: {middle:.3g}{last['mark']} ({low:.3g} to "
            f"{high:.3g}, {shown}), {last['statement']}{_why(last)}"
        )
    if lines:
        made = int(table["p_value"].notna().sum())
        rows = "the only row of the table" if made == 1 else f"all {made} rows of the table at once"
        lines.append(
            "Geometric means with 95% intervals, each for itself; better and worse hold for "
            f"{rows} (Holm)."
        )
    return lines


def last_rows(table: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], pd.Series]]:
    """Yield the row of each pair (and run) at its last checkpoint, under its names.

    Args:
        table: the result of :func:`compare` or :func:`compare_runs`.
    """
    keys = [column for column in ("run", "pair") if column in table]
    for key, group in table.groupby(keys, sort=False) if len(table) else ():
        yield tuple(map(str, key)), group.sort_values("step", kind="stable").iloc[-1]


def _why(row: pd.Series) -> str:
    """Return why a row whose interval may say more is undecided."""
    if (
        row["statement"] != "undecided"
        or not math.isfinite(row["log_ratio"])
        or not row["log_ratio"]
    ):
        return ""
    if _within_error(row.to_dict()):
        return ": within the stated error"
    if row["batches"] < FEWEST_BATCHES:
        return f": a statement needs {FEWEST_BATCHES} batches"
    return ": not after correction" if _interval(row.to_dict()).excludes_zero else ""


def _gammas(run: Run, member: Member) -> pd.DataFrame:
    """Return gamma, error and damping by checkpoint, step, progress and batch."""
    scores = run.scores
    rows = scores[scores["method"] == member.method]
    if rows.empty:
        hint = suggest(member.method, scores["method"].unique())
        raise EvalkitError(f"'{run.folder}' holds no method '{member.method}'; {hint}")
    dampings = sorted(rows["damping"].unique())
    damping = dampings[0] if member.damping is None else member.damping
    if damping not in dampings:
        raise EvalkitError(
            f"expected one of the dampings {', '.join(f'{value:g}' for value in dampings)} of "
            f"'{member.method}' in '{run.folder}', found {damping:g}; name one that was scored"
        )
    ordered = rows[rows["damping"] == damping].sort_values(["step", "checkpoint", "batch"])
    return ordered.set_index([*_CHECKPOINT, "batch"])[["gamma", "error", "damping"]]
