"""What no mean holds, or makes infinite: counted, and said beside the means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from evalkit.counts import counted
from evalkit.names import display_name
from evalkit.storage.run_folder import Run

_QUOTIENTS = ("gamma", "ratio", "efficiency")
_MEASURES = ("loss", "imbalance", "logit_imbalance", "gamma_floor")


def undefined_sentences(run: Run) -> tuple[str, ...]:
    """Return a sentence for each kind of number that means leave out or become infinite by.

    A ratio to SGD is undefined where SGD's gamma is zero or infinite, an efficiency where the floor
    is infinite; an imbalance is infinite where a sample has no gradient.

    Args:
        run: its tables.
    """
    scores, batches = run.scores, run.batches
    found = []
    undefined = scores[list(_QUOTIENTS)].isna()
    if undefined.to_numpy().any():
        rows = scores[undefined.any(axis="columns")]
        columns = [name for name in _QUOTIENTS if undefined[name].any()]
        found.append(
            f"{_share(rows, scores, 'row')} of {_methods(rows)} {_have(rows)} no "
            f"{_listed(columns)}, the first in {_place(rows)}: means are over the others"
        )
    for name in _MEASURES:
        values = batches[name].to_numpy(float)
        words = name.replace("_", " ")
        for chosen, kind, means in (
            (np.isnan(values), "no", "means are over the others"),
            (np.isinf(values), "an infinite", "a mean that holds one is infinite"),
        ):
            if chosen.any():
                rows = batches[chosen]
                found.append(
                    f"{_share(rows, batches, 'batch')} {_have(rows)} {kind} {words}, the first is "
                    f"{_place(rows)}: {means}"
                )
    return tuple(found)


def _share(rows: pd.DataFrame, every: pd.DataFrame, thing: str) -> str:
    return f"{len(rows)} of {counted(len(every), thing)}"


def _have(rows: pd.DataFrame) -> str:
    return "has" if len(rows) == 1 else "have"


def _methods(rows: pd.DataFrame) -> str:
    return ", ".join(display_name(str(name)) for name in rows["method"].unique())


def _listed(names: Sequence[str]) -> str:
    return " or ".join(names)


def _place(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return f"batch {first['batch']} of checkpoint '{first['checkpoint']}'"
