"""The gate: scores of a run against a baseline, paired by batch, with a verdict for each.

Only scores of the same batches at the same checkpoint are compared. What keeps scores from being
compared is a verdict of its own, and fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from evalkit.counts import counted
from evalkit.errors import EvalkitError
from evalkit.gate.baseline_file import IDENTITY, INFORMATION, NO_PAST, Baseline
from evalkit.gate.comparison import ALL, METRICS, Check, Comparison, Verdict
from evalkit.gate.stated import doubt, lost_accuracy, stated_errors, with_ratio_errors
from evalkit.names import task_name
from evalkit.results.intervals import (
    EFFICIENCY,
    FEWEST_BATCHES,
    LEVEL,
    Metric,
    Statement,
    differences,
    holm,
    interval,
)
from evalkit.results.summaries import floor_ratios
from evalkit.settings import DEFAULT_TOLERANCE

UNCHANGED = 1e-3
"""Relative difference up to which numbers that no method changes count as equal."""
_VERDICTS: dict[Statement, Verdict] = {
    "better": "improved",
    "worse": "worse",
    "undecided": "same",
}
_NEW = "not in the baseline"
_UNDECIDED = "the interval holds zero"
_WITHIN = "within the stated error"
_BASELINE_MARKED = (
    "* The baseline rests on marked scores: once those of the run are not, write it again with "
    "`update_baseline`."
)
_LISTED = 5


def check(run: Baseline, baseline: Baseline, tolerance: float = DEFAULT_TOLERANCE) -> Check:
    """Compare every checkpoint, method and damping of a baseline with those of a run.

    A difference is worse or improved when its mean over batches exceeds the tolerance and its
    p-value, paired by batch and corrected by Holm's method for the rows of the check, is at most
    5%. A method that descends in a batch of the baseline and does not in the run is worse whatever
    the means say. Where fewer than three batches were scored, a difference beyond the tolerance is
    not comparable. One that is smaller than the stated errors of both sides together is the same,
    or not comparable where it goes the wrong way and the errors of the baseline are small; nor is a
    descent comparable that is lost where the error of gamma is 100% or more.

    Args:
        run: the result of :func:`evalkit.gate.baseline.baseline_of`.
        baseline: the result of :func:`evalkit.gate.baseline_file.read_baseline`.
        tolerance: the tolerance of the mean log ratio and of the mean efficiency, absolute.

    Raises:
        EvalkitError: the tolerance is not a finite number of at least 0.
    """
    if not 0 <= tolerance < math.inf:
        raise EvalkitError(
            f"expected a tolerance that is a finite number of at least 0, found {tolerance}; "
            f"the default is {DEFAULT_TOLERANCE}"
        )
    found = [_incomparable(phrase) for phrase in _differing(IDENTITY, run, baseline)]
    if not found:
        for name in baseline.checkpoints:
            found += _checkpoint(name, run, baseline, tolerance)
        found = _corrected(found)
        for name in run.checkpoints:
            if name not in baseline.checkpoints:
                found.append(Comparison(name, ALL, math.nan, "", "new", reason=_NEW))
    return Check(
        task=run.made_with["task"],
        tolerance=tolerance,
        checkpoints=tuple(baseline.checkpoints),
        comparisons=tuple(sorted(found, key=lambda comparison: comparison.badness)),
        notes=tuple(_differing(INFORMATION, run, baseline)),
        remarks=tuple(_remarks(run, found)),
    )


def _remarks(run: Baseline, found: Sequence[Comparison]) -> Iterator[str]:
    """Yield what is to be said of marked scores."""
    yield from run.remarks
    if any("expected" in comparison.doubt for comparison in found):
        yield _BASELINE_MARKED


def _differing(names: Iterable[str], run: Baseline, baseline: Baseline) -> Iterator[str]:
    """Yield a phrase for each entry in which run and baseline differ."""
    for name in names:
        found, wanted = run.made_with[name], baseline.made_with[name]
        if name == "task":
            found, wanted = task_name(found), task_name(wanted)
        if name == "past tasks" and NO_PAST in (found, wanted):  # one has no rows that depend on it
            continue
        if found != wanted:
            yield f"{name} {found} instead of {wanted}"


def _incomparable(
    reason: str, checkpoint: str = ALL, method: str = ALL, damping: float = math.nan
) -> Comparison:
    return Comparison(checkpoint, method, damping, "", "not comparable", reason=reason)


def _checkpoint(
    name: str, run: Baseline, baseline: Baseline, tolerance: float
) -> Iterator[Comparison]:
    """Yield the comparisons of one checkpoint of the baseline."""
    if name not in run.checkpoints:
        yield _incomparable("not in the run", name)
        return
    sha, wanted_sha = run.checkpoints[name], baseline.checkpoints[name]
    if sha != wanted_sha:
        yield _incomparable(f"another file: SHA-256 {sha[:8]} instead of {wanted_sha[:8]}", name)
        return
    found, wanted = (table.rows[table.rows["checkpoint"] == name] for table in (run, baseline))
    changed = list(_changed(name, found, wanted))
    yield from changed or _methods(name, found, wanted, tolerance)


def _methods(
    name: str, found: pd.DataFrame, wanted: pd.DataFrame, tolerance: float
) -> Iterator[Comparison]:
    """Yield the comparisons of every method and damping at one checkpoint."""
    pair = ["method", "damping"]
    found, wanted = with_ratio_errors(found), with_ratio_errors(wanted)
    both = wanted.merge(found, on=[*pair, "batch"], suffixes=("_expected", ""))
    pairs = dict(list(both.sort_values("batch").groupby(pair)))
    scored = dict(list(found.groupby(pair)["batch"]))
    expected = dict(list(wanted.groupby(pair)["batch"]))
    for key, batches in expected.items():
        if key not in scored:
            yield _incomparable("not scored in the run", name, *key)
            continue
        missing = ~batches.isin(scored[key])
        if missing.any():
            where = _where(pd.Index(batches), missing.to_numpy())
            yield _incomparable(f"not in the run: {where}", name, *key)
            continue
        for metric in METRICS:
            yield _compared(metric, (name, *key), pairs[key], tolerance)
    for key in scored:
        if key not in expected:
            yield Comparison(name, key[0], key[1], "", "new", reason=_NEW)


def _changed(name: str, found: pd.DataFrame, wanted: pd.DataFrame) -> Iterator[Comparison]:
    """Yield what differs of the numbers that no method changes.

    The loss depends on samples and parameters, SGD's efficiency on F, g and the floor as well.
    Where one of them differs, the run has scored something else, or in another way.
    """
    for metric, method, values, meaning in (
        ("loss", ALL, _losses, "other samples, labels or model"),
        (EFFICIENCY.name, "sgd", _sgd_efficiencies, "F, g or the floor is computed differently"),
    ):
        both = pd.concat([values(found), values(wanted)], axis=1, join="inner").dropna()
        obtained, expected = both.to_numpy(float).T
        differs = ~np.isclose(obtained, expected, rtol=UNCHANGED, atol=0)
        if differs.any():
            yield Comparison(
                checkpoint=name,
                method=method,
                damping=math.nan,
                metric=metric,
                verdict="not comparable",
                obtained=float(obtained.mean()),
                expected=float(expected.mean()),
                difference=float(differences(obtained, expected).mean()),
                reason=f"{meaning}: {_where(both.index, differs)}",
            )


def _losses(rows: pd.DataFrame) -> pd.Series:
    return rows.groupby("batch")["loss"].first()


def _sgd_efficiencies(rows: pd.DataFrame) -> pd.Series:
    return floor_ratios(rows, ["batch"])


def _compared(
    metric: Metric, key: tuple[str, str, float], pairs: pd.DataFrame, tolerance: float
) -> Comparison:
    """Return the comparison of one metric over the batches of the baseline."""
    obtained, expected = (
        metric.transform(pairs[f"{metric.column}{suffix}"].to_numpy(float))
        for suffix in ("", "_expected")
    )
    known = ~(np.isnan(obtained) & np.isnan(expected))
    values = differences(obtained, expected)[known]
    found = interval(values if len(values) else np.zeros(1))
    batches = pd.Index(pairs["batch"])
    lost = pairs["descends_expected"].to_numpy(bool) & ~pairs["descends"].to_numpy(bool)
    one_sided = np.isnan(obtained) ^ np.isnan(expected)
    errors = stated_errors(metric, pairs)[known]
    stated = float(errors.mean()) if len(errors) else 0.0
    verdict: Verdict = "same"
    reason = "" if known.all() else f"undefined in both: {_where(batches, ~known)}"
    p_value = math.nan
    if lost.any():
        verdict, reason = "worse", f"no descent: {_where(batches, lost)}"
        if pairs["error"].between(1, math.inf, inclusive="left")[lost].all():
            verdict, reason = "not comparable", f"{reason}, if its error allows to say so"
    elif one_sided.any():
        verdict, reason = "not comparable", f"undefined in one: {_where(batches, one_sided)}"
    elif math.isnan(found.mean):
        verdict, reason = "not comparable", "infinitely better and worse"
    elif tolerance < abs(found.mean) <= stated:
        reason = _WITHIN
        if (found.mean < 0) == metric.higher_is_better and lost_accuracy(metric, pairs):
            verdict, reason = "not comparable", f"{_WITHIN} of the run alone"
    elif (
        abs(found.mean) > tolerance and len(values) < FEWEST_BATCHES and not math.isinf(found.mean)
    ):
        verdict = "not comparable"
        reason = f"{_where(batches, known)} alone: a verdict needs {FEWEST_BATCHES} batches"
    elif math.sqrt(float((values**2).mean() if len(values) else 0)) > tolerance:
        # A mean is never beyond the tolerance where the root mean square is not, and the latter
        # says nothing of the p-value: only these rows count in the correction.
        p_value = found.p_value
        if abs(found.mean) > tolerance:
            verdict = _VERDICTS[found.statement(metric)]
            reason = reason if verdict != "same" else _UNDECIDED
    numbers = (_mean(obtained[known]), _mean(expected[known]), found.mean, found.low, found.high)
    row = (*key, metric.name, verdict, *numbers, reason)
    return Comparison(
        *row,
        batches=int(known.sum()),
        p_value=p_value,
        stated=stated,
        doubt=doubt(metric, pairs),
    )


def _corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return comparisons with p-values corrected for their number, and the verdicts left by it."""
    p_values = holm([comparison.p_value for comparison in comparisons])
    count = sum(not math.isnan(p_value) for p_value in p_values)
    corrected = []
    for comparison, p_value in zip(comparisons, p_values, strict=True):
        decided = comparison.verdict in ("worse", "improved")
        comparison = replace(comparison, p_value=p_value)
        if decided and p_value > 1 - LEVEL:
            reason = f"{_UNDECIDED} once corrected for {counted(count, 'row')}"
            comparison = replace(comparison, verdict="same", reason=reason)
        corrected.append(comparison)
    return corrected


def _mean(values: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        return float(values.mean()) if len(values) else math.nan


def _where(batches: pd.Index, chosen: np.ndarray) -> str:
    """Return which batches are meant, in a few words."""
    listed = [str(number) for number in batches[chosen]]
    if len(listed) == 1:
        return f"batch {listed[0]}"
    if chosen.all():
        return f"all {len(listed)} batches"
    rest = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return f"batches {', '.join(listed[:_LISTED])}{rest}"
