"""The curves of a run that other tools show: a value at each step of the training.

A value is the mean over batches that the report has. What is not a number, or is not to be relied
on, never passes for one that is: the former is left out and said in a note, the latter is a curve
of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from evalkit.counts import counted
from evalkit.errors import EvalkitError
from evalkit.results.marks import UNRELIABLE_SIGN, Mark, marks_of
from evalkit.results.summaries import summarize, summarize_batches
from evalkit.results.undefined import undefined_sentences
from evalkit.storage.lost_rows import lost_rows
from evalkit.storage.run_folder import Run
from evalkit.storage.tables import BATCHES_FILE, SCORES_FILE, averaged

FLOOR, BATCHES, TRAINING = "floor", "batches", "training"
"""Curves that are of no method."""
UNRELIABLE = "unreliable"
"""What the name of a quantity begins with where its values are not to be relied on."""
_OF_FLOOR = {"gamma_floor": "gamma", "floor_ratio": "ratio"}
_LONGEST = 150
"""Characters of a name, of 255 that a file may have and 250 that MLflow takes."""
_COUNTS = ("ascents", "infinite", "undefined")


@dataclass(frozen=True)
class Point:
    """A value after a number of steps of the training; finite."""

    step: int
    value: float


@dataclass(frozen=True)
class Series:
    """A quantity along a training.

    Attributes:
        curve: what it is of: a method (and damping), or one of :data:`FLOOR`, :data:`BATCHES` and
            :data:`TRAINING`.
        quantity: what it is, as ``"gamma"``.
        points: in the order of their steps.
    """

    curve: str
    quantity: str
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """How tools call it that have one list of names: ``gamma/ief``, ``batches/loss``."""
        if self.curve in (BATCHES, TRAINING):
            return f"{self.curve}/{self.quantity}"
        return f"{self.quantity}/{self.curve}"


@dataclass(frozen=True)
class Curves:
    """The curves of a run.

    Attributes:
        series: those that have points.
        labels: method and damping, as ``"kfac:labels=exact, damping 1e-12"``, by the curve.
        notes: sentences on what is left out, and on what is not to be relied on.
    """

    series: tuple[Series, ...]
    labels: Mapping[str, str]
    notes: tuple[str, ...]


def curves_of(run: Run) -> Curves:
    """Return the curves of a run: of each method and damping, of the floor, and of its batches.

    Means are those of :func:`evalkit.results.summaries.summarize` and
    :func:`~evalkit.results.summaries.summarize_batches`; counts of batches whose direction ascends,
    or whose ratio is infinite or undefined, are there where one is not 0.

    Raises:
        EvalkitError: two checkpoints have the same step.
    """
    summary, floors, marks = summarize(run), summarize_batches(run), marks_of(run.scores)
    _check_steps(floors)
    names = curve_names(zip(summary["method"], summary["damping"], strict=True))
    found: list[_Column] = []
    for (method, damping), rows in summary.groupby(["method", "damping"], sort=False):
        key = (str(method), float(damping))
        marked = [marks.of_gamma(str(name), *key) for name in rows["checkpoint"]]
        of_ratio = [marks.of_ratio(str(name), *key) for name in rows["checkpoint"]]
        for quantity in averaged(SCORES_FILE):
            chosen = of_ratio if quantity == "ratio" else marked
            found.append(_Column(names[key], quantity, rows, f"{quantity}_mean", chosen))
        for quantity in _COUNTS:
            if rows[quantity].any():
                found.append(_Column(names[key], quantity, rows, quantity))
    sgd = min((damping for method, damping in names if method == "sgd"), default=None)
    for column, quantity in _OF_FLOOR.items():
        marked = []
        if quantity == "ratio" and sgd is not None:
            marked = [marks.of_gamma(str(name), "sgd", sgd) for name in floors["checkpoint"]]
        found.append(_Column(FLOOR, quantity, floors, f"{column}_mean", marked))
    found += [
        _Column(BATCHES, column, floors, f"{column}_mean")
        for column in averaged(BATCHES_FILE)
        if column not in _OF_FLOOR
    ]
    return Curves(
        series=tuple(series for column in found for series in column.series()),
        labels={curve: f"{name}, damping {damping!r}" for (name, damping), curve in names.items()},
        notes=(*gaps_and_marks(run), *_left_out(found)),
    )


def gaps_and_marks(run: Run) -> tuple[str, ...]:
    """Return sentences on what the tables of a run lack, and on what is not to be relied on."""
    said = (lost_rows(run), *undefined_sentences(run))
    return tuple(filter(None, (*said, *marks_of(run.scores).sentences)))


def series_of(table: pd.DataFrame, curve: str, columns: Iterable[str]) -> Iterator[Series]:
    """Yield columns of a table as they are, what is not finite left out.

    Args:
        table: with a column ``step``.
        curve: what they are of.
        columns: the names of columns, which are those of the quantities.
    """
    for column in columns:
        yield from _Column(curve, column, table, column).series()


def curve_names(keys: Iterable[tuple[str, float]]) -> dict[tuple[str, float], str]:
    """Return what the curve of each method and damping is called.

    Letters, digits, ``_``, ``.`` and ``-`` alone, which every tool takes and every file system:
    ``kfac:labels=exact`` is ``kfac_labels_exact``. The damping follows where there are several,
    ``ief_damping_0.01``. No two are called alike, or as a curve that is of no method.

    Args:
        keys: methods with settings as written, and dampings.
    """
    given = list(dict.fromkeys((str(method), float(damping)) for method, damping in keys))
    several = len({damping for _, damping in given}) > 1
    taken = {FLOOR, BATCHES, TRAINING}
    names = {}
    for method, damping in given:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", method).strip(".")[:_LONGEST] or "method"
        plain += f"_damping_{damping!r}" if several else ""
        name, count = plain, 1
        while name.lower() in taken:  # some file systems do not tell case apart
            count += 1
            name = f"{plain}_{count}"
        taken.add(name.lower())
        names[method, damping] = name
    return names


def held(series: Series, holds: Callable[[float], bool], notes: list[str]) -> Series:
    """Return the points of a series that a tool can hold; a note says how many others there are.

    Args:
        series: any.
        holds: whether the tool holds a value.
        notes: to which it is added.
    """
    kept = tuple(point for point in series.points if holds(point.value))
    if len(kept) < len(series.points):
        left = len(series.points) - len(kept)
        notes.append(
            f"{series.name} lacks {left} of {counted(len(series.points), 'value')}, beyond the "
            "numbers of this format"
        )
    return replace(series, points=kept)


@dataclass(frozen=True, eq=False)
class _Column:
    """A column of a table of means, a row for each checkpoint, and its marks where it has any."""

    curve: str
    quantity: str
    rows: pd.DataFrame
    column: str
    marks: Sequence[Mark | None] = ()

    def series(self) -> Iterator[Series]:
        """Yield what is finite, and what of it is not to be relied on as a series of its own."""
        sure: list[Point] = []
        unsure: list[Point] = []
        marks = self.marks or [None] * len(self.rows)
        for step, value, mark in zip(self.rows["step"], self.rows[self.column], marks, strict=True):
            if math.isfinite(value):
                unreliable = mark is not None and mark.sign == UNRELIABLE_SIGN
                (unsure if unreliable else sure).append(Point(int(step), float(value)))
        for points, begins in ((sure, ""), (unsure, f"{UNRELIABLE}_")):
            if points:
                ordered = tuple(sorted(points, key=lambda point: point.step))
                yield Series(self.curve, f"{begins}{self.quantity}", ordered)

    def gaps(self) -> set[int]:
        """Return the steps at which there is no number, none for what is nowhere defined."""
        numbers = self.rows[self.column].to_numpy(float)
        if np.isnan(numbers).all():
            return set()
        return set(self.rows["step"][~np.isfinite(numbers)].map(int))


def _left_out(columns: Iterable[_Column]) -> Iterator[str]:
    """Yield a sentence for each curve that has no number somewhere."""
    gaps: dict[str, dict[str, set[int]]] = {}
    for column in columns:
        if column.gaps():
            gaps.setdefault(column.curve, {})[column.quantity] = column.gaps()
    for curve, found in gaps.items():
        steps = set().union(*found.values())
        where = f"at {counted(len(steps), 'checkpoint')}"
        yield (
            f"{', '.join(found)} of {curve}: infinite or undefined {where}, the first at step "
            f"{min(steps)}, and left out there"
        )


def _check_steps(floors: pd.DataFrame) -> None:
    """Refuse checkpoints that a tool would put in one place.

    Raises:
        EvalkitError: two have the same step.
    """
    twice = floors[floors["step"].duplicated(keep=False)]
    if len(twice):
        first, second = twice.sort_values("step", kind="stable")["checkpoint"].tolist()[:2]
        raise EvalkitError(
            f"expected checkpoints with a step each, found '{first}' and '{second}' at one step; "
            "export the tables, which need none, with `to=parquet`"
        )
