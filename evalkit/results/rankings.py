"""Whether gamma ranks optimizers as their final training losses do (the paper's E2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from evalkit.results.correlations import FEWEST, correlation
from evalkit.results.optimizer_ratios import STAGES, stage_ratios
from evalkit.results.trainings import Contender

_WHERE: dict[str, str] = {
    "own": "on each optimizer's own trajectory",
    "reference": "on the reference trajectory",
}


def ranked(found: Sequence[Contender]) -> tuple[tuple[Contender, ...], tuple[str, ...]]:
    """Return the contenders that are ranked, of each optimizer the best, and why others are not.

    A gamma knows of no learning rate: settings of one optimizer beside one another would count it
    several times.
    """
    best: dict[str, Contender] = {}
    for contender in found:
        if math.isnan(contender.final_loss):
            continue
        other = best.get(contender.optimizer)
        if other is None or contender.final_loss < other.final_loss:
            best[contender.optimizer] = contender
    notes = [
        f"{contender.label}: not ranked, as {best[contender.optimizer].label} ended with a lower "
        "loss"
        for contender in found
        if contender.optimizer in best and contender is not best[contender.optimizer]
        if not math.isnan(contender.final_loss)
    ]
    return tuple(best.values()), tuple(notes)


def correlation_table(found: Sequence[Contender], ratios: pd.DataFrame) -> pd.DataFrame:
    """Return the rank correlation of gamma with final training loss, by trajectory and stage.

    Both are better where they are smaller: 1 says that the order by gamma is that by final loss.

    Args:
        found: the contenders that are ranked.
        ratios: the table of :func:`evalkit.results.optimizer_ratios.optimizer_ratios`.

    Returns:
        Columns trajectory, stage, optimizers (how many have both), rho, low and high (95%, see
        :func:`evalkit.results.correlations.correlation`), statement.
    """
    rows = []
    for trajectory in dict.fromkeys(ratios["trajectory"]):
        by_contender = {
            contender.name: stage_ratios(ratios, trajectory, contender.name) for contender in found
        }
        for stage in STAGES:
            gammas, losses = [], []
            for contender in found:
                of_stage = by_contender[contender.name][stage].dropna().to_numpy(float)
                final = contender.final_losses[~np.isnan(contender.final_losses)]
                if len(of_stage) and len(final):
                    gammas.append(np.log(of_stage))
                    losses.append(final)
            one = correlation(gammas, losses)
            rows.append(
                {
                    "trajectory": trajectory,
                    "stage": stage,
                    "optimizers": one.points,
                    "rho": one.rho,
                    "low": one.low,
                    "high": one.high,
                    "statement": one.statement,
                }
            )
    names = ["trajectory", "stage", "optimizers", "rho", "low", "high", "statement"]
    return pd.DataFrame(rows, columns=names)


def correlation_sentences(table: pd.DataFrame) -> list[str]:
    """Return a sentence per trajectory: the rank correlations, or why there are none."""
    sentences = []
    for trajectory, rows in table.groupby("trajectory", sort=False):
        what = f"ank correlation of gamma {_WHERE[str(trajectory)]} with final training loss"
        known = rows[rows["rho"].notna()]
        if len(known):
            found = "; ".join(_correlation_text(row) for row in known.to_dict("records"))
            sentences.append(f"R{what}, 95% interval each for itself: {found}.")
            continue
        count = int(rows["optimizers"].max())
        why = "all have the same gamma, or the same loss"
        if count < FEWEST:
            why = f"optimizers that have both: {count}; of fewer than {FEWEST} it means nothing"
        sentences.append(f"No r{what}; {why}.")
    return sentences


def _correlation_text(row: Mapping[str, Any]) -> str:
    where = row["stage"] if row["stage"] == "overall" else f"at the {row['stage']}"
    rho, low, high = (f"{row[name]:.2f}" for name in ("rho", "low", "high"))
    return f"{where} {rho} ({low} to {high}, {row['optimizers']} optimizers), {row['statement']}"
