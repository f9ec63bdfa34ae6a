"""Marks: the sign behind each figure that needs a word, and the sentences that say it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evalkit.counts import counted
from evalkit.doubts import (
    CAUSES,
    DOUBTS,
    IMPOSSIBLE,
    MARKED,
    Doubt,
    iteration_limit,
    judge,
    mean_error,
)
from evalkit.names import base_name, display_name
from evalkit.results.remembered import Remembered

UNRELIABLE_SIGN = "*"
"""Behind a figure that is not to be relied on."""
NOTED_SIGN = "†"
"""Behind a figure that is right and needs a word."""

Key = tuple[str, str, float]
"""Checkpoint, method and damping."""


@dataclass(frozen=True)
class Mark:
    """A sign behind a value that needs a word.

    Attributes:
        sign: one or two characters.
        meaning: what is said of the value, where the pointer rests and to screen readers.
    """

    sign: str
    meaning: str


@dataclass(frozen=True, eq=False)
class Marks:
    """The marks of a table of scores.

    Attributes:
        sentences: one per kind of cause, each with its sign and the next step.
        errors: the stated error of each mean of gamma over batches, NaN where there is none.
    """

    sentences: tuple[str, ...]
    errors: Mapping[Key, float]
    _own: Mapping[Key, Mark]
    _of_sgd: Mapping[str, Mark]

    def of_gamma(self, checkpoint: str, method: str, damping: float) -> Mark | None:
        """Return the mark of a method's mean gamma, None where it needs no word."""
        return self._own.get((checkpoint, method, damping))

    def of_ratio(self, checkpoint: str, method: str, damping: float) -> Mark | None:
        """Return the mark of a mean ratio to SGD, which rests on SGD's gamma as well."""
        sgd = None if method == "sgd" else self._of_sgd.get(checkpoint)
        return joined(self.of_gamma(checkpoint, method, damping), sgd)

    def sign(self, checkpoint: str, method: str, damping: float) -> str:
        """Return the sign behind a mean ratio, empty for none."""
        found = self.of_ratio(checkpoint, method, damping)
        return found.sign if found else ""


def marks_of(scores: pd.DataFrame) -> Marks:
    """Return the marks of scores: of each checkpoint, method and damping, whatever the batch.

    A mean over batches is not to be relied on, ``*``, where its error, that of
    :func:`evalkit.doubts.mean_error`, is above :data:`evalkit.doubts.MARKED`, or where the gamma of
    a batch is one that it cannot be; a ratio where either of its gammas is not. It needs a word,
    ``†``, where anything else is said of one of its rows: a stated error above
    :data:`evalkit.doubts.MARKED` that does not reach the mean, a tie, a damping that shows.

    Args:
        scores: rows as in ``scores.csv``; without errors (a table of an earlier version) only what
            cannot be is marked.
    """
    return _MARKS.of(scores, _marks_of)


_MARKS = Remembered()


def _marks_of(scores: pd.DataFrame) -> Marks:
    rows = judge(scores)
    keys = ["checkpoint", "method", "damping"]
    found = rows[list(_SAID)].to_numpy(bool)
    impossible = rows[list(IMPOSSIBLE)].to_numpy(bool).any(axis=1)
    signs = np.full(len(rows), "", dtype=object)
    errors: dict[Key, float] = {}
    own: dict[Key, Mark] = {}
    of_sgd: dict[str, Mark] = {}
    for (checkpoint, method, damping), group in rows[[*keys, "error"]].groupby(keys, sort=False):
        key, places = (str(checkpoint), str(method), float(damping)), group.index  # from 0 on
        stated = group["error"].to_numpy(float)
        errors[key] = mean_error(stated)
        counts = dict(zip(_SAID, found[places].sum(axis=0).tolist(), strict=True))
        mark = _mark(stated, counts, errors[key], bool(impossible[places].any()))
        if mark is not None:
            own[key] = mark
            signs[places] = mark.sign
            if method == "sgd" and mark.sign == UNRELIABLE_SIGN:
                of_sgd[key[0]] = Mark(mark.sign, f"SGD, which it is relative to: {mark.meaning}")
    return Marks(tuple(_sentences(rows.assign(sign=signs))), errors, own, of_sgd)


def joined(*marks: Mark | None) -> Mark | None:
    """Return what several marks say of one value: the graver sign, and every meaning."""
    found = [mark for mark in marks if mark is not None]
    if not found:
        return None
    signs = [mark.sign for mark in found]
    meanings = dict.fromkeys(mark.meaning for mark in found)
    return Mark(UNRELIABLE_SIGN if UNRELIABLE_SIGN in signs else signs[0], "; ".join(meanings))


def worst(marks: Iterable[Mark | None]) -> str:
    """Return the graver sign of several marks, empty for none."""
    found = joined(*marks)
    return found.sign if found else ""


def percent(share: float) -> str:
    """Return a share as a percentage of two digits: 0.013%, 4.2%, 120%."""
    if not math.isfinite(share):
        return f"{share:g}"
    return f"{float(f'{100 * max(share, 0.0):.2g}'):g}%"


def reach(error: float) -> str:
    """Return how far a gamma with this error may be off, in words."""
    if error >= 1:
        return "may be wrong in every digit"
    return f"may be off by {percent(error)}"


_SAID: Mapping[Doubt, str] = {
    "below floor": "below the floor, which no direction is",
    "above others": "better than the exact natural gradient, or that worse than another",
    "floor tie": "below the floor within the stated error",
    "tie": "above another method within the stated errors",
    "damped": "above another method because of the damping",
}


def _mark(
    errors: np.ndarray, counts: Mapping[Doubt, int], error: float, impossible: bool
) -> Mark | None:
    """Return the mark of the mean over one group of rows.

    Args:
        errors: the stated ones of the rows.
        counts: the rows that have each of the doubts of ``_SAID``.
        error: of their mean.
        impossible: whether the gamma of any is one that it cannot be.
    """
    said = []
    batches = counted(len(errors), "batch")
    marked = int((errors > MARKED).sum())
    if marked:
        said.append(
            f"{marked} of {batches} with a stated error above {percent(MARKED)}; "
            f"the mean {reach(error)}"
        )
    said += [f"{_SAID[doubt]}, in {count} of {batches}" for doubt, count in counts.items() if count]
    if not said:
        return None
    grave = error > MARKED or impossible
    return Mark(UNRELIABLE_SIGN if grave else NOTED_SIGN, "; ".join(said))


def _sentences(rows: pd.DataFrame) -> Iterable[str]:
    """Yield a sentence per doubt that any row has."""
    for doubt in DOUBTS:
        chosen = rows[rows[doubt]]
        if len(chosen):
            grave = doubt in CAUSES + IMPOSSIBLE and (chosen["sign"] == UNRELIABLE_SIGN).any()
            sign = UNRELIABLE_SIGN if grave else NOTED_SIGN
            for part in _parts(doubt, chosen):
                yield f"{sign} {_SENTENCES[doubt](part, rows)}"
    within = rows[(rows["error"] > MARKED) & (rows["sign"] == NOTED_SIGN)]
    if len(within):
        yield (
            f"{NOTED_SIGN} {_names(within)}: single batches have a stated error above "
            f"{percent(MARKED)}, and their mean has not."
        )


def _parts(doubt: Doubt, chosen: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows that one sentence is about: of each natural gradient where others count."""
    if doubt not in ("above others", "tie", "damped"):
        return [chosen]
    natural = chosen[chosen["above_other"].notna()]
    return [part for _, part in natural.groupby("method", sort=False)]


def _off(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Return which gammas are off, and how far: ``EF: gamma may be off by 3% in 2 of 6 rows``."""
    return f"{_names(chosen)}: gamma {reach(chosen['error'].max())} in {_share(chosen, rows)}"


def _names(chosen: pd.DataFrame) -> str:
    return ", ".join(display_name(str(name)) for name in chosen["method"].unique())


def _share(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Return how many of the rows of these methods are meant."""
    of = int(rows["method"].isin(chosen["method"].unique()).sum())
    return f"{len(chosen)} of {counted(of, 'row')}"


def _float32(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    return (
        f"{_off(chosen, rows)}, found in float32: leave out `dtype=float32`, or give "
        "`dtype=float64`."
    )


def _cancellation(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    return (
        f"{_off(chosen, rows)}, found in float64: the direction is a small difference of large "
        f"terms; raise `damping`, as to {_damping(chosen):g}."
    )


def _damping(chosen: pd.DataFrame) -> float:
    """Return a damping that may well be enough: an error of cancellation falls as 1 / lambda."""
    least = chosen.loc[chosen["damping"] > 0]
    if least.empty:
        return 1e-12
    wanted = float((least["damping"] * least["error"].clip(upper=1.0)).max()) / MARKED
    return 10.0 ** math.ceil(math.log10(max(wanted, 10 * float(least["damping"].max()))))


def _gradient(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    return (
        f"{_off(chosen, rows)}, and with it every ratio there: the gradients of the samples nearly "
        "cancel; score other batches, as with another `batch_size` or `seed`."
    )


def _unconverged(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    base = base_name(str(chosen["method"].iloc[0]))
    limits = chosen["method"].map(iteration_limit)
    text = (
        f"{_names(chosen)}: gamma may be {percent(chosen['error'].max())} above the smallest in "
        f"{_share(chosen, rows)}, where the solver "
    )
    direct = f"or take {base}:solver=direct where a batch has few outputs."
    if (chosen["iterations"].astype(float) >= limits).any():
        more = f"`methods={base}:max_iterations={4 * int(limits.max())}`"
        return f"{text}ended at its limit of iterations: raise it, as in {more}, {direct}"
    advice = "raise `damping`" if (chosen["dtype"] == "float64").all() else "give `dtype=float64`"
    return f"{text}stopped before its tolerance: let it take more iterations, {advice}, {direct}"


def _tolerance(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    base = base_name(str(chosen["method"].iloc[0]))
    return (
        f"{_off(chosen, rows)}, where the solver met its tolerance: lower {base}:tolerance and "
        f"{base}:floor_tolerance, or take {base}:solver=direct."
    )


def _again(chosen: pd.DataFrame) -> str:
    """Return what to do about numbers that cannot be, whatever the reason."""
    if (chosen["dtype"] == "float64").all():
        return "raise `damping`, and report it as a fault if that does not help"
    return "score again into a new folder with `dtype=float64`"


def _below_floor(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    return (
        f"{_names(chosen)}: efficiency above 100%, by {percent(chosen['above_floor'].max())}, in "
        f"{_share(chosen, rows)}, which no direction has and no stated error explains: "
        f"{_again(chosen)}."
    )


def _above_others(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    direct = "" if (chosen["solver"] == "direct").all() else ", or take ngd:solver=direct"
    return (
        f"{_above(chosen, rows)}, which the exact natural gradient never is and no stated error "
        f"explains, so that one of the two is wrong: {_again(chosen)}{direct}."
    )


def _above(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Return how far the natural gradient is above which other methods."""
    others = ", ".join(display_name(str(name)) for name in chosen["other"].unique())
    most = chosen["above_other"].replace(np.inf, np.nan).max()
    by = f" by {percent(most)}" if most > 0 else ""
    return f"{_names(chosen)}: gamma above that of {others}{by} in {_share(chosen, rows)}"


def _floor_tie(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    return (
        f"{_names(chosen)}: efficiency above 100%, by {percent(chosen['above_floor'].max())}, in "
        f"{_share(chosen, rows)}, which no direction has and the stated error explains."
    )


def _tie(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    return f"{_above(chosen, rows)}, which their stated errors explain."


def _damped(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    return (
        f"{_above(chosen, rows)} at damping {chosen['damping'].min():g}: damped as it is it need "
        "not have the smallest gamma; lower `damping` to see the exact natural gradient."
    )


_SENTENCES: Mapping[Doubt, Callable[[pd.DataFrame, pd.DataFrame], str]] = {
    "float32": _float32,
    "cancellation": _cancellation,
    "gradient": _gradient,
    "unconverged": _unconverged,
    "tolerance": _tolerance,
    "below floor": _below_floor,
    "above others": _above_others,
    "floor tie": _floor_tie,
    "tie": _tie,
    "damped": _damped,
}
