"""Trainings side by side: those that differ in their seed alone are one contender.

A contender is written like a method, ``"adamw"``, with the settings behind it in which contenders
of the same optimizer differ, ``"adamw:learning_rate=0.01"``, so that names, families and colours
are those of methods everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evalkit.counts import counted
from evalkit.errors import EvalkitError
from evalkit.names import display_name
from evalkit.storage.history import HISTORY_FILE
from evalkit.storage.training_folder import Training

FINAL_STEPS = 100
"""Steps whose mean loss is the final training loss, as in the paper."""
_MORE = ("checkpoint_every",)
"""Entries of a recipe that change nothing of a training."""


@dataclass(frozen=True)
class Contender:
    """An optimizer with its settings, trained from one or several seeds.

    Attributes:
        name: the optimizer, with settings where contenders of the same one differ.
        trainings: one of each seed.
    """

    name: str
    trainings: tuple[Training, ...]

    @property
    def optimizer(self) -> str:
        """The name of its optimizer."""
        return self.trainings[0].optimizer

    @property
    def label(self) -> str:
        """How it is written in figures and tables."""
        return display_name(self.name)

    @property
    def final_losses(self) -> np.ndarray:
        """The final training loss of each training, NaN where there is none."""
        return np.array([final_loss(training) for training in self.trainings])

    @property
    def final_loss(self) -> float:
        """The mean of the final training losses over the seeds that have one."""
        return mean_and_deviation(self.final_losses)[0]


def contenders(trainings: Sequence[Training]) -> tuple[Contender, ...]:
    """Return trainings by optimizer and settings, in the order given.

    Raises:
        EvalkitError: the trainings are of several tasks, a task with other settings, or two are the
            same but for their folder.
    """
    check_one_task(trainings)
    groups: dict[str, list[Training]] = {}
    for training in trainings:
        groups.setdefault(json.dumps(_recipe(training), sort_keys=True), []).append(training)
    for group in groups.values():
        _check_seeds(group)
    found = list(groups.values())
    return tuple(Contender(_name(group, found), tuple(group)) for group in found)


def _recipe(training: Training) -> dict[str, Any]:
    """Return what makes a training what it is; what is left to the optimizer is not named."""
    whole = {"schedule": "constant", **training.recipe}
    return {name: value for name, value in whole.items() if name not in _MORE and value is not None}


def _name(group: Sequence[Training], groups: Sequence[Sequence[Training]]) -> str:
    """Return the optimizer of a group, with the settings in which others with it differ."""
    own = _recipe(group[0])
    same = [_recipe(other[0]) for other in groups if other[0].optimizer == own["optimizer"]]
    differing = [name for name in own if any(other.get(name) != own[name] for other in same)]
    return ":".join([own["optimizer"], *(f"{name}={_text(own[name])}" for name in differing)])


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_one_task(trainings: Sequence[Training]) -> None:
    """Refuse trainings of several tasks, or of one with other settings.

    Raises:
        EvalkitError: as said.
    """
    first = trainings[0]
    for other in trainings[1:]:
        if other.task != first.task:
            raise EvalkitError(
                f"expected trainings of one task, found '{first.task}' in '{first.folder}' and "
                f"'{other.task}' in '{other.folder}'; compare those of each task apart, as their "
                "losses mean different things"
            )
        for name in {*first.settings, *other.settings}:
            values = [training.settings.get(name, "the default") for training in (first, other)]
            if values[0] != values[1]:
                raise EvalkitError(
                    f"expected trainings of one task with the same settings, found {name}="
                    f"{values[0]} in '{first.folder}' and {values[1]} in '{other.folder}'; compare "
                    "those of each apart"
                )


def _check_seeds(group: Sequence[Training]) -> None:
    seeds = [training.seed for training in group]
    for training in group:
        if seeds.count(training.seed) > 1:
            others = [str(other.folder) for other in group if other.seed == training.seed]
            raise EvalkitError(
                f"expected trainings that differ in their seed or a setting, found "
                f"{' and '.join(others)} of seed {training.seed} with the same settings; name one"
            )


def final_steps(training: Training) -> int:
    """Return over how many steps the final training loss is a mean: 100, or all there are."""
    return 0 if training.history is None else min(FINAL_STEPS, len(training.history))


def final_loss(training: Training) -> float:
    """Return the mean loss of the batches of the last 100 steps, each before its step.

    NaN where there is no history, or where the training has not come to its end.
    """
    if training.history is None or not is_finished(training):
        return math.nan
    return float(training.history["loss"].to_numpy(float)[-FINAL_STEPS:].mean())


def is_finished(training: Training) -> bool:
    """Whether a training came to its end, by its history or else by its last checkpoint."""
    last = training.checkpoints["progress"].iloc[-1]
    if training.history is not None:
        last = training.history["progress"].max() if len(training.history) else 0.0
    return bool(last >= 1 - 1e-9)


def best_accuracy(training: Training) -> float:
    """Return the best validation accuracy of all checkpoints, NaN where none is known."""
    return float(training.checkpoints["validation_accuracy"].max())


def skipped_steps(training: Training) -> int:
    """Return how many steps the optimizer has skipped."""
    return 0 if training.history is None else int(training.history["skipped"].sum())


def training_table(found: Sequence[Contender]) -> pd.DataFrame:
    """Return a row per training.

    Returns:
        Columns optimizer (the contender), seed, folder, steps, final_steps, final_loss,
        best_validation_accuracy, skipped (steps), progress (of the last checkpoint).
    """
    rows = [
        {
            "optimizer": contender.name,
            "seed": training.seed,
            "folder": str(training.folder),
            "steps": 0 if training.history is None else len(training.history),
            "final_steps": final_steps(training),
            "final_loss": final_loss(training),
            "best_validation_accuracy": best_accuracy(training),
            "skipped": skipped_steps(training),
            "progress": training.checkpoints["progress"].iloc[-1],
        }
        for contender in found
        for training in contender.trainings
    ]
    return pd.DataFrame(rows)


def contender_table(found: Sequence[Contender]) -> pd.DataFrame:
    """Return a row per contender, the lowest final training loss first.

    Returns:
        Columns optimizer (the contender), seeds, the settings of its recipe, final_loss_mean and
        final_loss_std, best_validation_accuracy_mean and best_validation_accuracy_std (over seeds,
        divisor n - 1), skipped (steps, of all seeds).
    """
    rows = []
    for contender in found:
        trainings = contender.trainings
        loss = mean_and_deviation(contender.final_losses)
        accuracy = mean_and_deviation(np.array([best_accuracy(training) for training in trainings]))
        recipe = _recipe(trainings[0])
        rows.append(
            {
                "optimizer": contender.name,
                "seeds": len(trainings),
                **{name: value for name, value in recipe.items() if name != "optimizer"},
                "final_loss_mean": loss[0],
                "final_loss_std": loss[1],
                "best_validation_accuracy_mean": accuracy[0],
                "best_validation_accuracy_std": accuracy[1],
                "skipped": sum(map(skipped_steps, trainings)),
            }
        )
    table = pd.DataFrame(rows)
    return table.sort_values("final_loss_mean", kind="stable", ignore_index=True)


def mean_and_deviation(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of what is known; of one value no deviation is known."""
    known = values[~np.isnan(values)]
    if not known.size:
        return math.nan, math.nan
    spread = known.size > 1 and np.isfinite(known).all()
    return float(known.mean()), float(known.std(ddof=1)) if spread else math.nan


def training_notes(found: Sequence[Contender]) -> list[str]:
    """Return a sentence for each thing that the numbers of the trainings need said of them."""
    notes: list[str] = []
    short: dict[int, dict[str, None]] = {}
    for contender in found:
        for training in contender.trainings:
            where = f"{contender.label}, {training.folder}"
            if training.history is None:
                notes.append(
                    f"{where}: no final loss, as there is no {HISTORY_FILE}; train again with "
                    "'evalkit train', which writes it"
                )
            elif not is_finished(training):
                done = training.history["progress"].max()
                notes.append(f"{where}: no final loss, as the training stopped at {done:.0%}")
            elif final_steps(training) < FINAL_STEPS:
                short.setdefault(final_steps(training), {})[contender.label] = None
            elif not math.isfinite(final_loss(training)):
                notes.append(f"{where}: the final loss is {final_loss(training):g}")
        skipped = [skipped_steps(training) for training in contender.trainings]
        if any(skipped):
            were = "was" if sum(skipped) == 1 else "were"
            notes.append(f"{contender.label}: {counted(sum(skipped), 'step')} {were} skipped")
    for steps, labels in short.items():
        notes.append(
            f"{', '.join(labels)}: the final loss is the mean of {counted(steps, 'step')}, "
            f"fewer than {FINAL_STEPS}"
        )
    return notes
