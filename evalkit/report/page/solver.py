"""What the report page says of solvers."""

from __future__ import annotations

import pandas as pd

from evalkit.doubts import MARKED
from evalkit.names import base_name, display_name
from evalkit.report.page.cells import Cell, Table
from evalkit.results.marks import percent
from evalkit.results.spreads import format_number

NEAR_FLOOR = 0.01
"""How far above the floor, as a share, a gamma is as good as the best one."""


def solver_table(summary: pd.DataFrame, scores: pd.DataFrame) -> Table:
    """Return what the solver reports, a row per checkpoint, method and damping that used one.

    Args:
        summary: the result of ``results.summarize``.
        scores: the scores of the run, whose ``solver`` names it.
    """
    key = ["checkpoint", "method", "damping"]
    named = scores[scores["solver"].notna()]
    solvers = named.groupby(key, sort=False)["solver"].agg(lambda names: ", ".join(names.unique()))
    used = summary[summary["iterations"].notna()]
    above = _above_floor(scores).groupby(by=[scores[name] for name in key], sort=False).max()
    rows = tuple(
        (
            Cell(row["checkpoint"]),
            Cell(display_name(row["method"])),
            Cell(f"{row['damping']:g}", row["damping"]),
            Cell(str(solvers.get(tuple(row[key]), "–"))),
            Cell(f"{row['converged']:.0%}", row["converged"]),
            Cell(f"{row['iterations']:.1f}", row["iterations"]),
            Cell(format_number(row["relative_residual"]), row["relative_residual"]),
            Cell(percent(above[tuple(row[key])]), above[tuple(row[key])]),
        )
        for _, row in used.iterrows()
    )
    head = ("converged", "iterations", "largest residual", "above the floor")
    return Table((*key, "solver", *head), rows, names=2)


def solver_sentences(scores: pd.DataFrame) -> list[str]:
    """Return what stopping early can have changed, a sentence per method that ever did.

    The stated errors tell. Without them: no direction is below the floor, so that a gamma near it
    is near the best one, however the solver ended; where the floor is out of reach, the distance to
    it says too much.

    Args:
        scores: the scores of the run.
    """
    stopped = scores[scores["converged"].notna() & ~scores["converged"].fillna(True).astype(bool)]
    sentences = []
    for method, rows in stopped.groupby("method", sort=False):
        batches, above = len(rows), float(_above_floor(rows).max())
        of = int((scores["method"] == method).sum())
        name, base = display_name(str(method)), base_name(str(method))
        text = f"{name} stopped before its tolerance in {batches} of {of} solves. "
        if (rows["error"] <= MARKED).all():
            text += (
                "It does not matter: the stated error of each of these gammas is at most "
                f"{percent(float(rows['error'].max()))}."
            )
        elif above <= NEAR_FLOOR:
            text += (
                f"It does not matter: each of these gammas is at most {percent(above)} above the "
                "floor, and so at most that far above the gamma of the exact solution."
            )
        else:
            text += (
                f"The largest of these gammas is {percent(above)} above the floor, which the exact "
                f"solution need not reach: score again with {base}:max_iterations="
                f"{4 * int(rows['iterations'].max())}, or with {base}:solver=direct."
            )
        sentences.append(text)
    return sentences


def _above_floor(scores: pd.DataFrame) -> pd.Series:
    """Return gamma / gamma_floor - 1 of each row."""
    return 1 / scores["efficiency"].astype(float) - 1
