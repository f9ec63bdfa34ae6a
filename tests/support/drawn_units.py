"""Units whose rows are drawn at random, and the store of a study of them: nothing is scored."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

from evalkit.settings import Settings
from evalkit.storage.columns import table_of
from evalkit.storage.rows import Batch, Cell, Score
from evalkit.study.execute import Rows
from evalkit.study.plan import Unit, plan
from evalkit.study.store import Store

METHODS, DAMPINGS = ("sgd", "ief"), (1e-12, 1e-3)
CHECKPOINTS = [("step-1", 1, 0.5), ("step-2", 2, 1.0)]
BATCHES = 2


def provenance() -> dict[str, Any]:
    return {
        "settings": {"methods": list(METHODS), "dampings": list(DAMPINGS), "batches": BATCHES},
        "checkpoints": [
            dict(zip(("name", "step", "progress"), one, strict=True)) for one in CHECKPOINTS
        ],
        "finished": None,
        "seconds": None,
    }


def units() -> list[Unit]:
    pairs = frozenset(itertools.product(METHODS, DAMPINGS))
    cells = [Cell(*one, batch) for one in CHECKPOINTS for batch in range(BATCHES)]
    return [Unit(cell, pairs) for cell in cells]


def rows_of(unit: Unit) -> Rows:
    """Return rows that depend on the unit alone."""
    draw = random.Random(f"{unit.cell}")
    scores = [
        Score(method, damping, *(draw.random() for _ in range(7)), None, None, None, None, 0.0, "f")
        for method, damping in itertools.product(METHODS, DAMPINGS)
        if (method, damping) in unit.pairs
    ]
    batch = Batch(8, *(draw.random() for _ in range(5)), 8, f"{unit.cell.batch:064}", 8)
    keys = [table_of([unit.cell] * len(rows), Cell) for rows in (scores, [batch])]
    return Rows({**keys[0], **table_of(scores, Score)}, {**keys[1], **table_of([batch], Batch)})


def left(of: Store) -> tuple[Unit, ...]:
    """Return the units that a store has no rows of."""
    settings = Settings(methods=METHODS, dampings=DAMPINGS, batches=BATCHES)
    return plan((unit.cell for unit in units()), settings, of.finished)


def store(run: Path, writer: str | None = None) -> Store:
    """Return the store as a start opens it."""
    one = Store(run, provenance(), writer, lambda: None)
    if one.exists:
        one.hold()
    return one
