"""Folders of trainings with chosen losses, and runs that scored them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.written_runs import PROVENANCE, cell, score_row, write_run

RECIPE = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "epochs": 4}


def write_training(
    folder: Path,
    optimizer: str = "sgd",
    losses: Sequence[float] | None = (2.0, 1.0, 0.5, 0.25),
    seed: int = 0,
    accuracies: Sequence[float | None] = (0.1, 0.9, 0.8),
    progress: float = 1.0,
    task: str = "digits-mlp",
    settings: Mapping[str, Any] | None = None,
    skipped: int = 0,
    **recipe: Any,
) -> Path:
    """Write manifest and history: losses of equal steps up to ``progress``, the first skipped."""
    folder.mkdir(parents=True)
    last = len(accuracies) - 1
    manifest = {
        "format": 1,
        "task": task,
        "settings": dict(settings or {}),
        "recipe": RECIPE | {"optimizer": optimizer} | recipe,
        "seed": seed,
        "checkpoints": [
            {
                "file": f"step-{place:06d}.safetensors",
                "step": place,
                "progress": progress * place / last,
                "training_loss": 1.0,
                "validation_accuracy": accuracy,
            }
            for place, accuracy in enumerate(accuracies)
        ],
    }
    (folder / "trajectory.json").write_text(json.dumps(manifest), encoding="utf-8")
    if losses is not None:
        lines = ["step,epoch,progress,loss,learning_rate,skipped"]
        for place, loss in enumerate(losses, start=1):
            done = progress * place / len(losses)
            lines.append(f"{place},1,{done!r},{loss!r},0.1,{int(place <= skipped)}")
        (folder / "history.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_scores(
    folder: Path,
    training: Path,
    ratios: Mapping[str, Sequence[float]],
    dampings: Sequence[float] = (1e-12,),
    task: str = "digits-mlp",
    batches: int = 2,
) -> Path:
    """Write a run of a training: of each method the ratio to SGD at each of its checkpoints."""
    count = len(next(iter(ratios.values())))
    cells = []
    for place in range(count):
        for batch in range(batches):
            rows = [
                score_row(method, values[place] * (1 + 0.1 * batch), floor=0.001, damping=damping)
                for damping in dampings
                for method, values in {"sgd": [1.0] * count, **ratios}.items()
            ]
            step, progress = place, place / max(count - 1, 1)
            cells.append(cell(f"c{place}", step, progress, batch, rows))
    methods = list(dict.fromkeys(["sgd", *ratios]))
    provenance = {
        **PROVENANCE,
        "task": task,
        "trajectory": str(training),
        "settings": {"methods": methods, "dampings": list(dampings), "seed": 0},
    }
    return write_run(folder, cells, provenance)
