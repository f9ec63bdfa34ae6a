"""Pairs of methods on the same batches: how many times the gamma of the other, and how surely."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evalkit.errors import EvalkitError
from evalkit.paired import LOG_RATIO, differences, interval
from evalkit.registry import suggest
from evalkit.results import display_name
from evalkit.run import Run

SEED = 0
"""Of the resamples of every interval, whatever else is compared."""
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

    Every number is paired by batch. Of the two ways to average, the mean of ratios follows the
    paper; the ratio of means weighs batches by their gamma.

    Args:
        run: its tables.
        pairs: of methods that it scored.

    Returns:
        Columns pair, checkpoint, step, progress, batches; ratio_mean and ratio_std, mean and one
        sigma of the ratio over batches; ratio_of_means; log_ratio, low, high: mean of ln ratio and
        its 95% bootstrap interval; statement: what the interval says about the first method.

    Raises:
        EvalkitError: a method or damping was not scored.
    """
    rows = []
    for pair in pairs:
        first, second = (_gammas(run, member) for member in (pair.first, pair.second))
        joined = pd.concat({"first": first, "second": second}, axis=1).dropna()
        for key, group in joined.groupby(level=_CHECKPOINT, sort=False):
            one, other = group["first"].to_numpy(float), group["second"].to_numpy(float)
            with np.errstate(invalid="ignore", divide="ignore"):
                ratios = np.where(one == other, 1.0, one / other)
                of_means = one.mean() / other.mean()
            found = interval(
                differences(LOG_RATIO.transform(one), LOG_RATIO.transform(other)),
                np.random.default_rng(SEED),
            )
            finite = bool(np.isfinite(ratios).all())
            rows.append(
                {
                    "pair": pair.label,
                    **dict(zip(_CHECKPOINT, key, strict=True)),
                    "batches": len(group),
                    "ratio_mean": ratios.mean(),
                    "ratio_std": ratios.std(ddof=1) if finite and len(ratios) > 1 else np.nan,
                    "ratio_of_means": of_means,
                    "log_ratio": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "statement": found.statement(LOG_RATIO),
                }
            )
    return pd.DataFrame(rows)


def compare_runs(runs: Sequence[Run], pairs: Sequence[Pair]) -> pd.DataFrame:
    """Return the tables of :func:`compare` below each other, with a first column ``run``."""
    tables = {name: compare(run, pairs) for name, run in named(runs).items()}
    return pd.concat(tables, names=["run", None]).reset_index(level="run").reset_index(drop=True)


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
    """Return a sentence per pair (and run) at its last checkpoint: ``iEF / SGD: 0.574 ... better``.

    Args:
        table: of :func:`compare` or :func:`compare_runs`.
    """
    if table.empty:
        return []
    keys = [column for column in ("run", "pair") if column in table]
    lines = []
    for key, group in table.groupby(keys, sort=False):
        last = group.sort_values("step", kind="stable").iloc[-1]
        low, middle, high = np.exp([last["low"], last["log_ratio"], last["high"]])
        lines.append(
            f"{', '.join(map(str, key))} at {last['checkpoint']}: {middle:.3g} "
            f"({low:.3g} to {high:.3g}), {last['statement']}"
        )
    return lines


def _gammas(run: Run, member: Member) -> pd.Series:
    """Return gamma by checkpoint, step, progress and batch."""
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
    return ordered.set_index([*_CHECKPOINT, "batch"])["gamma"]
