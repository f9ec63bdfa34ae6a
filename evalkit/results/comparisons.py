"""Trainings side by side: losses and gammas of one another's optimizers, as tables to read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from evalkit.notebooks import table_html
from evalkit.results.marks import UNRELIABLE_SIGN
from evalkit.results.optimizer_ratios import (
    STAGES,
    Scored,
    Trajectory,
    optimizer_ratios,
    stage_ratios,
)
from evalkit.results.rankings import correlation_sentences, correlation_table, ranked
from evalkit.results.spreads import format_number, geometric_spread
from evalkit.results.trainings import (
    Contender,
    check_one_task,
    contender_table,
    contenders,
    training_notes,
)
from evalkit.storage.run_folder import Run
from evalkit.storage.training_folder import Training

SHOWN_STAGES = STAGES[1:]
"""Of the ratios in a table that is printed."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Trainings side by side.

    Attributes:
        contenders: optimizers with their settings, each with its seeds.
        ranked: those of them that rank correlations are over.
        ratios: gamma relative to SGD's, see :class:`evalkit.results.optimizer_ratios.Ratios`.
        correlations: the result of :func:`evalkit.results.rankings.correlation_table`.
        notes: what has to be said of losses and ratios, a sentence each.
        runs: that the ratios are from, or could be.
    """

    contenders: tuple[Contender, ...]
    ranked: tuple[Contender, ...]
    ratios: pd.DataFrame
    correlations: pd.DataFrame
    notes: tuple[str, ...]
    runs: tuple[Run, ...]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the table that is printed, and its notes."""
        shown = shown_table(self)
        rows = shown.itertuples(index=False, name=None)
        said = (*correlation_sentences(self.correlations), *self.notes)
        return table_html("Trainings, γ relative to SGD's", map(str, shown.columns), rows, said)


def compared(
    trainings: Sequence[Training], scored: Sequence[Scored], reference: Scored | None = None
) -> Comparison:
    """Return trainings side by side.

    Args:
        trainings: of one task.
        scored: the runs of those of them that were scored.
        reference: a trajectory on which many methods were scored.

    Raises:
        EvalkitError: the trainings are not of one task, or two are the same.
    """
    found = contenders(trainings)
    if reference is not None:
        check_one_task([trainings[0], reference.training])
    ratios = optimizer_ratios(found, scored, reference)
    best, unranked = ranked(found)
    every = [run for one in (*scored, *([reference] if reference else [])) for run in one.runs]
    return Comparison(
        contenders=found,
        ranked=best,
        ratios=ratios.table,
        correlations=correlation_table(best, ratios.table),
        notes=(*training_notes(found), *ratios.notes, *unranked),
        runs=tuple({run.folder.resolve(): run for run in every}.values()),
    )


def shown_table(comparison: Comparison) -> pd.DataFrame:
    """Return a comparison as texts, a row per contender, the lowest final loss first.

    Returns:
        Columns optimizer, seeds, learning rate, final loss (mean over seeds and one sigma), best
        accuracy where one is known, and for each trajectory the ratio of gamma to SGD's at the
        stages, geometric means over batches and seeds.
    """
    numbers = contender_table(comparison.contenders)
    by_name = {contender.name: contender for contender in comparison.contenders}
    accuracy = "best_validation_accuracy"
    rows = []
    for row in numbers.to_dict("records"):
        text = {
            "optimizer": by_name[row["optimizer"]].label,
            "learning rate": format(row.get("learning_rate", math.nan), "g"),
            "seeds": str(row["seeds"]),
            "final loss": _with_sigma(row["final_loss_mean"], row["final_loss_std"]),
        }
        if numbers[f"{accuracy}_mean"].notna().any():
            text["best accuracy"] = _accuracy(row[f"{accuracy}_mean"], row[f"{accuracy}_std"])
        for trajectory in dict.fromkeys(comparison.ratios["trajectory"]):
            for stage in SHOWN_STAGES:
                text[f"{trajectory}\n{stage}"] = _ratio(
                    comparison.ratios, trajectory, row["optimizer"], stage
                )
        rows.append(text)
    return pd.DataFrame(rows)


def _with_sigma(mean: float, sigma: float) -> str:
    """Return a loss and its deviation, both with what digits the smaller of them needs."""
    if not (math.isfinite(mean) and sigma > 0):
        return format_number(mean)
    return f"{format_number(mean)} ± {sigma:.2g}"


def _accuracy(mean: float, sigma: float) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.1%} ± {100 * sigma:.1f}" if sigma > 0 else f"{mean:.1%}"


def _ratio(ratios: pd.DataFrame, trajectory: Trajectory, name: str, stage: str) -> str:
    found = stage_ratios(ratios, trajectory, name)[stage].dropna().to_numpy(float)
    if not len(found):
        return ""
    chosen = (ratios["trajectory"] == trajectory) & (ratios["optimizer"] == name)
    marks = ratios[chosen & (ratios["stage"] == stage)]["mark"].tolist()
    sign = UNRELIABLE_SIGN if UNRELIABLE_SIGN in marks else next(filter(None, marks), "")
    return f"{format_number(geometric_spread(found)[0])}{sign}"
