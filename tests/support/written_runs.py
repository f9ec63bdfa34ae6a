"""Runs with chosen rows: their cells, their tables and their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from evalkit.storage.run_folder import append_rows, create_run

PROVENANCE = {
    "evalkit": "0.1.0",
    "versions": {"torch": "2.13.0"},
    "task": "digits-mlp",
    "settings": {"methods": ["sgd", "ef", "ngd"], "dampings": [1e-12], "seed": 0},
    "checkpoints": [{"name": "first", "step": 0, "sha256": "ab" * 32}],
    "started": "2025-01-04T10:20:30+00:00",
    "finished": "2025-01-04T10:21:30+00:00",
    "seconds": 60.0,
}


def score_row(method: str, ratio: float, sgd: float = 2.0, floor: float = 1.0, **more: Any) -> dict:
    """Return one row of scores; gamma and efficiency follow from the ratio."""
    gamma = ratio * sgd
    row = {
        "method": method,
        "damping": 1e-12,
        "gamma": gamma,
        "ratio": ratio,
        "efficiency": floor / gamma,
        "fisher_norm": 1.0,
        "slope": 1.0,
        "norm": 1.0,
        "cosine_sgd": 0.5,
        "iterations": None,
        "relative_residual": None,
        "converged": None,
    }
    return row | more


def cell(
    checkpoint: str, step: int, progress: float, batch: int, rows: list[dict], **more: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the two tables of one checkpoint and batch."""
    key = {"checkpoint": checkpoint, "step": step, "progress": progress, "batch": batch}
    measured = {
        "num_samples": 8,
        "loss": 0.5,
        "imbalance": 10.0,
        "logit_imbalance": 5.0,
        "target_probability": 0.75,
        "gamma_floor": 1.0,
        "gram_rank": 8,
    }
    return pd.DataFrame([key | row for row in rows]), pd.DataFrame([key | measured | more])


def write_run(folder: Path, cells: list[tuple], provenance: dict = PROVENANCE) -> Path:
    """Write a run of the given cells."""
    create_run(folder, provenance)
    if cells:
        scores, batches = (
            pd.concat(tables, ignore_index=True) for tables in zip(*cells, strict=True)
        )
        append_rows(folder, scores, batches)
    return folder


def ngd_row(ratio: float, **more: Any) -> dict:
    return score_row("ngd", ratio, iterations=12, relative_residual=1e-4, converged=True, **more)
