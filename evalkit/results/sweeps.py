"""What a sweep over dampings shows: the best damping of each method, and what near-zero costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from evalkit.names import display_name
from evalkit.results.marks import marks_of
from evalkit.results.pairs import Member, Pair, compare
from evalkit.results.summaries import stages, summarize
from evalkit.storage.run_folder import Run


def is_sweep(run: Run) -> bool:
    """Whether several dampings were scored."""
    return run.scores["damping"].nunique() > 1


def damping_places(dampings: Iterable[float]) -> dict[float, float]:
    """Return where each damping lies on a log axis: zero two decades below the smallest other."""
    present = sorted({float(value) for value in dampings})
    smallest = next((value for value in present if value > 0), 1.0)
    return {value: value if value > 0 else smallest / 100 for value in present}


def best_dampings(run: Run) -> pd.DataFrame:
    """Return how far near-zero damping is from each method's best, by stage of training.

    Best is the damping with the smallest mean ratio to SGD at that checkpoint: chosen on the same
    batches, so that the distance is, if anything, too large.

    Returns:
        Columns stage, checkpoint, progress, method, batches, damping (the smallest scored), ratio,
        best_damping, best_ratio; distance, the mean ratio of gamma at the smallest damping to that
        at the best, paired by batch, with its 95% interval distance_low and distance_high; mark
        and best_mark, the signs behind the two ratios. All means are geometric.
    """
    summary, marks = summarize(run), marks_of(run.scores)
    rows = []
    for stage, checkpoint in stages(summary).items():
        alone = replace(run, scores=run.scores[run.scores["checkpoint"] == checkpoint])
        here = summary[(summary["checkpoint"] == checkpoint) & (summary["method"] != "sgd")]
        for method, group in here.groupby("method", sort=False):
            group = group.sort_values("damping", kind="stable").reset_index(drop=True)
            near, best = group.iloc[0], group.loc[group["ratio_mean"].fillna(np.inf).idxmin()]
            pair = Pair(Member(str(method), near["damping"]), Member(str(method), best["damping"]))
            found = compare(alone, [pair]).iloc[0]
            rows.append(
                {
                    "stage": stage,
                    "checkpoint": checkpoint,
                    "progress": near["progress"],
                    "method": display_name(str(method)),
                    "batches": found["batches"],
                    "damping": near["damping"],
                    "ratio": near["ratio_mean"],
                    "best_damping": best["damping"],
                    "best_ratio": best["ratio_mean"],
                    "distance": np.exp(found["log_ratio"]),
                    "distance_low": np.exp(found["low"]),
                    "distance_high": np.exp(found["high"]),
                    "mark": marks.sign(checkpoint, str(method), near["damping"]),
                    "best_mark": marks.sign(checkpoint, str(method), best["damping"]),
                }
            )
    return pd.DataFrame(rows)


def discussed_dampings(run: Run, method: str = "ef") -> tuple[float, float]:
    """Return the smallest damping of a method, and the one that is best at the end of training.

    Where the smallest is the best, the largest stands in.
    """
    summary = summarize(run)
    last = stages(summary)["end"]
    rows = summary[(summary["checkpoint"] == last) & (summary["method"] == method)]
    rows = rows.sort_values("damping", kind="stable").reset_index(drop=True)
    smallest = float(rows["damping"].iloc[0])
    best = float(rows.loc[rows["ratio_mean"].fillna(np.inf).idxmin(), "damping"])
    return smallest, best if best > smallest else float(rows["damping"].iloc[-1])


def damping_discussion(run: Run, dampings: tuple[float, float], method: str = "ef") -> pd.DataFrame:
    """Return a method at two dampings beside iEF: what damping improves, and what it turns into.

    A damping that is large beside the Gram matrix turns EF into SGD, with a cosine to SGD near 1:
    the paper's author response finds that this is how damping helps EF.

    Args:
        run: its tables.
        dampings: the dampings of the method; iEF is taken at its smallest.
        method: the method.

    Returns:
        Columns label, method, damping, checkpoint, step, progress; ratio_mean and ratio_factor,
        of gamma to that of iEF; cosine_sgd_mean and cosine_sgd_std.

    Raises:
        EvalkitError: a method or damping was not scored.
    """
    summary, other = summarize(run), Member("ief")
    tables = []
    for member in (*(Member(method, damping) for damping in dampings), other):
        ratios = compare(run, [Pair(member, other)])
        rows = summary[summary["method"] == member.method]
        damping = rows["damping"].min() if member.damping is None else member.damping
        rows = rows[rows["damping"] == damping].set_index("checkpoint")
        found = ratios[["checkpoint", "step", "progress", "ratio_mean", "ratio_factor"]].copy()
        for column in ("cosine_sgd_mean", "cosine_sgd_std"):
            found[column] = found["checkpoint"].map(rows[column])
        tables.append(found.assign(label=member.label, method=member.method, damping=damping))
    return pd.concat(tables, ignore_index=True)
