"""Gamma of optimizers: on their own trajectories, and on one that all have in common.

The gamma of an optimizer is that of the direction that it takes: of the method of its name where it
has no state, else of the method ``optimizer``, the step of a training from its saved state. It is
read off two kinds of trajectory: the optimizer's own, and one that all have in common.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from evalkit.names import KNOWN, OPTIMIZERS, base_name, display_name
from evalkit.results.marks import marks_of
from evalkit.results.summaries import stages, summarize
from evalkit.results.sweeps import damping_places
from evalkit.results.trainings import Contender
from evalkit.settings import DEFAULT_DAMPING
from evalkit.storage.run_folder import Run
from evalkit.storage.training_folder import Training

OWN_STEP = "optimizer"
"""The method that scores the step which a training takes next from its saved state."""
STAGES = ("overall", "start", "middle", "end")
"""The geometric mean over all checkpoints, and the checkpoints at three stages of training."""
_BY_GRAM = ("ief", "ef", "sf", "fgn", "polyak")
"""Optimizers whose damping is that of inner products of gradients."""
_SAME_DAMPING = 0.01
"""Relative difference of dampings that are written with a few digits."""
Trajectory = Literal["own", "reference"]
_RATIOS = [
    "trajectory",
    "optimizer",
    "seed",
    "method",
    "damping",
    "checkpoint",
    "step",
    "progress",
    "stage",
    "batches",
    "ratio_mean",
    "ratio_factor",
    "mark",
]


@dataclass(frozen=True, eq=False)
class Scored:
    """A training with the runs that scored its trajectory.

    Attributes:
        training: the training.
        runs: in the order in which a method is looked for in them.
    """

    training: Training
    runs: tuple[Run, ...]


@dataclass(frozen=True, eq=False)
class Ratios:
    """Gamma of optimizers relative to that of SGD on the same batches.

    Attributes:
        table: a row per trajectory, contender, seed and checkpoint, with the method and damping
            whose gamma it is; ``stage`` is empty between the stages, ``ratio_mean`` the geometric
            mean over batches with one geometric sigma ``ratio_factor``, ``mark`` the sign of a
            score that is not to be relied on or needs a word.
        notes: a sentence for each contender without a gamma, and why; and what marks mean.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]


def optimizer_ratios(
    found: Sequence[Contender], scored: Sequence[Scored], reference: Scored | None = None
) -> Ratios:
    """Return gamma of every contender on its own trajectory, and on the one of reference.

    Args:
        found: the contenders.
        scored: the runs of their trainings, of those that have any.
        reference: a trajectory on which many methods were scored.
    """
    by_folder = {one.training.folder.resolve(): one for one in scored}
    read: list[_Read] = []
    notes = []
    for contender in found:
        own, note = _own(contender, by_folder)
        read += own
        notes += [note] if note else []
    for contender in found if reference is not None else ():
        assert reference is not None
        there, note = _there(contender, reference)
        read += there
        notes += [note] if note else []
    if not read:
        return Ratios(pd.DataFrame(columns=_RATIOS), tuple(notes))
    columns = ["checkpoint", "method", "damping", "batch"]
    marks = marks_of(pd.concat([one.scores for one in read]).drop_duplicates(columns))
    rows = [
        {**row, "mark": marks.sign(one.named(row["checkpoint"]), row["method"], row["damping"])}
        for one in read
        for row in one.rows
    ]
    notes += dict.fromkeys(one.note for one in read if one.note)
    return Ratios(pd.DataFrame(rows, columns=_RATIOS), (*notes, *marks.sentences))


@dataclass(frozen=True, eq=False)
class _Read:
    """What is read off one run.

    Attributes:
        folder: of the run.
        rows: those of the table of ratios, without marks.
        scores: what they are from, its checkpoints named apart from those of other runs.
        note: what has to be said of them, empty where nothing has.
    """

    folder: Path
    rows: list[dict[str, Any]]
    scores: pd.DataFrame
    note: str = ""

    def named(self, checkpoint: str) -> str:
        """Return what a checkpoint is called in the scores."""
        return f"{self.folder}/{checkpoint}"


def _own(contender: Contender, by_folder: Mapping[Path, Scored]) -> tuple[list[_Read], str]:
    """Return what is read off a contender's own trajectories, or why nothing is."""
    if _sums_directions(contender.trainings[0]):
        return [], _no_gamma(contender, "own")
    read = []
    unscored = ""
    for training in contender.trainings:
        one = by_folder.get(training.folder.resolve())
        if one is None:
            continue
        run, method = _first(one.runs, _methods_of(training))
        if run is None:
            runs = " and ".join(str(other.folder) for other in one.runs)
            wanted = " or ".join(map(repr, _methods_of(training)))
            unscored = (
                f"{contender.label}: no gamma on its own trajectory, as {runs} holds no method "
                f"{wanted}; give 'evalkit score' that method"
            )
            continue
        read.append(_read("own", contender, training, run, method))
    if not read and not unscored:
        unscored = (
            f"{contender.label}: no gamma on its own trajectory, as no RUN scores one of its "
            "trainings"
        )
    return read, "" if read else unscored


def _there(contender: Contender, reference: Scored) -> tuple[list[_Read], str]:
    """Return what is read off the reference trajectory for a contender, or why nothing is."""
    training, other = contender.trainings[0], reference.training
    if _sums_directions(training):
        return [], _no_gamma(contender, "reference")
    names = [training.optimizer]
    if has_state(training):
        if _without_rate(training.recipe) != _without_rate(other.recipe):
            return [], (
                f"{contender.label}: no gamma on the reference trajectory, as its step rests on a "
                f"state that only its own training has; the reference was trained with "
                f"{display_name(other.optimizer)}"
            )
        names = [OWN_STEP]
    run, method = _first(reference.runs, names)
    if run is None:
        return [], (
            f"{contender.label}: no gamma on the reference trajectory, as "
            f"{reference.runs[0].folder} holds no method '{names[0]}'"
        )
    return [_read("reference", contender, training, run, method)], ""


def has_state(training: Training) -> bool:
    """Whether the step of an optimizer rests on more than the batch: moments, momentum, ..."""
    return base_name(training.optimizer) in OPTIMIZERS or _has_momentum(training)


def _has_momentum(training: Training) -> bool:
    return bool(training.recipe.get("momentum"))


def _runs_the_forward(training: Training) -> bool:
    """Whether an optimizer is one of evalkit's own, of whose steps ``optimizer`` scores none."""
    name = base_name(training.optimizer)
    return name in KNOWN and name != "sgd"


def _sums_directions(training: Training) -> bool:
    """Whether no method is the step: one of evalkit's own, with momentum."""
    return _runs_the_forward(training) and _has_momentum(training)


def _no_gamma(contender: Contender, trajectory: Trajectory) -> str:
    name = contender.trainings[0].optimizer
    place = "its own" if trajectory == "own" else "the reference"
    return (
        f"{contender.label}: no gamma on {place} trajectory, as its momentum sums the directions "
        f"of several batches, and method '{name}' is that of one; train it without momentum"
    )


def _methods_of(training: Training) -> list[str]:
    """Return the methods that are the step of a training, the best first."""
    if has_state(training):
        return [OWN_STEP]
    return [training.optimizer, *([] if _runs_the_forward(training) else [OWN_STEP])]


def _without_rate(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a recipe tells the state of an optimizer: not how far or how long it goes."""
    left_out = ("learning_rate", "schedule", "epochs", "checkpoint_every")
    return {name: value for name, value in recipe.items() if name not in left_out}


def _first(runs: Sequence[Run], names: Iterable[str]) -> tuple[Run | None, str]:
    """Return the first of these methods that any of the runs scored, and that run."""
    for name in names:
        for run in runs:
            if (run.scores["method"] == name).any():
                return run, name
    return None, ""


def _read(
    trajectory: Trajectory, contender: Contender, training: Training, run: Run, method: str
) -> _Read:
    """Return gamma of a method at every checkpoint of a run, a row each."""
    scores = run.scores
    wanted = _summed_damping(training, run)
    damping = _nearest(scores[scores["method"] == method]["damping"].unique(), wanted)
    both = scores["method"].isin([method, "sgd"]) & (scores["damping"] == damping)
    summary = summarize(replace(run, scores=scores[both & (scores["method"] == method)]))
    by_checkpoint = {name: stage for stage, name in stages(summary).items()}
    rows = [
        {
            **{name: row[name] for name in _RATIOS if name in row},
            "trajectory": trajectory,
            "optimizer": contender.name,
            "seed": training.seed if trajectory == "own" else None,
            "stage": by_checkpoint.get(row["checkpoint"], ""),
        }
        for row in summary.to_dict("records")
    ]
    note = _other_damping(contender, run, damping, wanted)
    read = _Read(run.folder, rows, scores[both], note)
    names = [read.named(name) for name in scores[both]["checkpoint"]]
    return replace(read, scores=scores[both].assign(checkpoint=names))


def _summed_damping(training: Training, run: Run) -> float | None:
    """Return the damping of an optimizer as scores have it: for sums over a batch, not means."""
    damping = training.recipe.get("damping")
    if not isinstance(damping, (int, float)) or isinstance(damping, bool):
        return None
    samples = float(run.batches["num_samples"].median())
    power = 2 if base_name(training.optimizer) in _BY_GRAM else 1
    return damping * samples**power


def _other_damping(contender: Contender, run: Run, damping: float, wanted: float | None) -> str:
    """Return what to say where no score has the damping of a training, empty where one has."""
    near_zero = wanted is not None and max(damping, wanted) <= DEFAULT_DAMPING
    if wanted is None or near_zero or math.isclose(damping, wanted, rel_tol=_SAME_DAMPING):
        return ""
    return (
        f"{contender.label}: gamma at damping {damping:g}, the nearest in {run.folder} to the "
        f"{wanted:g} of its training, which is for sums over a batch as scored; give 'evalkit "
        "score' that damping"
    )


def _nearest(dampings: Iterable[float], wanted: float | None) -> float:
    """Return the damping that is nearest on a log scale; the smallest where none is wanted."""
    places = damping_places(dampings)
    if not wanted:
        return min(places)
    return min(places, key=lambda value: abs(math.log(places[value] / wanted)))


def stage_ratios(ratios: pd.DataFrame, trajectory: Trajectory, contender: str) -> pd.DataFrame:
    """Return the ratio of a contender at each stage, a row per seed.

    Args:
        ratios: the table of :func:`optimizer_ratios`.
        trajectory: own or reference.
        contender: its name.

    Returns:
        Columns ``overall``, ``start``, ``middle``, ``end``, NaN where there is no such stage.
    """
    rows = ratios[(ratios["trajectory"] == trajectory) & (ratios["optimizer"] == contender)]
    found = []
    for _, group in rows.groupby("seed", sort=False, dropna=False):
        by_stage = group[group["stage"] != ""].set_index("stage")["ratio_mean"]
        means = group["ratio_mean"].to_numpy(float)
        found.append({"overall": _geometric(means), **by_stage.to_dict()})
    return pd.DataFrame(found, columns=list(STAGES), dtype=float)


def _geometric(values: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(values).mean())) if len(values) else math.nan
