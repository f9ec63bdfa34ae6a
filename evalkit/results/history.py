"""What a run knows of the training behind it: losses and validation metrics of its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

_LOSS, _VALIDATION = "loss", "validation"


@dataclass(frozen=True, eq=False)
class History:
    """Numbers that ``run.json`` has beside its checkpoints, of those that were scored.

    Attributes:
        table: columns checkpoint, progress and those below; NaN where a checkpoint has none.
        losses: how each column of a loss is read, by its name.
        metrics: how each column of another validation metric is read, by its name.
        losses_are_positive: whether a log axis holds every loss, those of the batches included.
    """

    table: pd.DataFrame
    losses: dict[str, str]
    metrics: dict[str, str]
    losses_are_positive: bool


def history_of(provenance: Mapping[str, Any], floors: pd.DataFrame) -> History:
    """Return what a run's provenance says of losses and validation metrics.

    Every finite number whose name ends in ``loss`` is a loss; of the others, those whose name
    begins with ``validation`` are metrics. What is neither is left out.

    Args:
        provenance: the provenance of the run; anything that JSON can hold.
        floors: ``results.summarize_batches``, which names the checkpoints that were scored.
    """
    listed = provenance.get("checkpoints")
    listed = listed if isinstance(listed, list | tuple) else []
    entries = [item for item in listed if isinstance(item, Mapping)]
    numbers = {str(item.get("name")): _numbers(item) for item in entries}
    found = list(dict.fromkeys(name for row in numbers.values() for name in row))
    table = floors[["checkpoint", "progress"]].copy()
    for column in found:
        values = [numbers.get(name, {}).get(column, math.nan) for name in table["checkpoint"]]
        table[column] = pd.Series(values, index=table.index, dtype=float)
    found = [column for column in found if table[column].notna().any()]
    losses = [column for column in found if column.endswith(_LOSS)]
    metrics = [column for column in found if column not in losses]
    smallest = min([float(floors["loss_mean"].min()), *(float(table[c].min()) for c in losses)])
    return History(table, _read(losses), _read(metrics), smallest > 0)


def _numbers(item: Mapping[str, Any]) -> dict[str, float]:
    return {
        str(name): float(value)
        for name, value in item.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e300  # an integer of any length compares, and need not be a float
        and (str(name).endswith(_LOSS) or str(name).startswith(_VALIDATION))
    }


def _read(columns: list[str]) -> dict[str, str]:
    return {column: column.replace("_", " ") for column in columns}
