"""FOP beside KFAC, on the samples that made the directions and on samples that did not.

    python docs/guides/examples/fop_held_out.py checkpoints/digits-mlp

Halves of a batch differ by what is particular to their samples, so that a score in the batch says
little about FOP. Each direction is scored here on its own batch and on the next one as well, which
has other samples, both as a ratio to the gradient's gamma there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import evalkit
from evalkit.checkpoints import load_into, open_trajectory, trajectory_task


def compared(
    folder: Path,
    names: Sequence[str] = (),
    methods: Sequence[str] = ("kfac", "fop"),
    damping: float = 1e-3,
    batches: int = 8,
    batch_size: int = 160,
) -> list[dict[str, Any]]:
    """Return a row per checkpoint and method: ``batch`` and ``held_out``, medians of ratios.

    Args:
        folder: the checkpoints.
        names: of checkpoints; all where there are none.
        methods: as ``evalkit score`` takes them.
        damping: lambda.
        batches: batches per checkpoint, each held out from the one before it.
        batch_size: samples of each.
    """
    trajectory = open_trajectory(folder)
    task = trajectory_task(trajectory)
    model, samples = task.build_model(0).eval(), task.training_samples()
    rows = []
    for checkpoint in trajectory.checkpoints:
        if names and checkpoint.name not in names:
            continue
        load_into(model, checkpoint)
        places = [slice(i * batch_size, (i + 1) * batch_size) for i in range(batches)]
        lins = [evalkit.linearize(model, *samples.take(place), task.likelihood) for place in places]
        for method in methods:
            ratios: dict[str, list[float]] = {"batch": [], "held_out": []}
            for lin, other in zip(lins, [*lins[1:], lins[0]], strict=True):
                d = evalkit.update(method, lin, damping=damping)
                for key, where in (("batch", lin), ("held_out", other)):
                    plain = evalkit.gamma(where, lin.gradient)
                    ratios[key].append(evalkit.gamma(where, d) / plain)
            found = {key: median(values) for key, values in ratios.items()}
            rows.append({"checkpoint": checkpoint.name, "method": method, **found})
    return rows


if __name__ == "__main__":
    print(f"{'checkpoint':14} {'method':8} {'batch':>8} {'held out':>8}")
    for row in compared(Path(sys.argv[1])):
        batch, held_out = row["batch"], row["held_out"]
        print(f"{row['checkpoint']:14} {row['method']:8} {batch:8.3f} {held_out:8.3f}")
