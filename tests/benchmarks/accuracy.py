"""Errors of float32 scores against float64 ones, on late checkpoints of two trajectories.

Run ``make accuracy``, which writes ``reports/accuracy.md``. The trajectories are the bundled one
and one of the same task trained ten times as long, whose imbalance is beyond 1e6. Both evaluations
take the same float32 checkpoints, batches and seeds; only the precision of the evaluation differs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from evalkit.checkpoints import Trajectory, open_trajectory
from evalkit.run import read_run
from evalkit.settings import Settings
from evalkit.study import run_study
from evalkit.tasks import load_task
from evalkit.training import train
from tests.benchmarks.table import line, lines, machine

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "reports" / "accuracy.md"
SETTINGS = Settings(methods=("sgd", "ef", "ief", "sf", "ngd"), batches=10)
EPOCHS = 400
LATEST = 3
BATCH_METRICS = ("gamma_floor", "imbalance", "loss")
HEAD = f"""# Accuracy in float32

`make accuracy` measures this table: the largest relative error of a float32 evaluation against a
float64 one over {SETTINGS.batches} batches of {SETTINGS.batch_size} samples, at the last {LATEST}
checkpoints of the bundled `digits-mlp` trajectory and of the same task trained for {EPOCHS}
epochs. The first columns are errors of gamma at damping {SETTINGS.dampings[0]:g};
`largest imbalance` is the largest over the batches, in float64.

"""


def trajectories(folder: Path) -> Iterator[tuple[str, Trajectory]]:
    """Yield the bundled trajectory and one trained longer."""
    yield "bundled", open_trajectory(ROOT / "checkpoints" / "digits-mlp")
    task = load_task("digits-mlp")
    yield (
        f"{EPOCHS} epochs",
        train(task, folder=folder / "longer", epochs=EPOCHS, checkpoint_every=EPOCHS // 10),
    )


def quantities(trajectory: Trajectory, dtype: str, folder: Path) -> pd.DataFrame:
    """Return gamma of every method and the metrics of every batch, by checkpoint and batch."""
    run_study(trajectory, load_task("digits-mlp"), replace(SETTINGS, dtype=dtype), folder)
    results = read_run(folder)
    cells = ["checkpoint", "batch"]
    gammas = results.scores.pivot(index=cells, columns="method", values="gamma")
    metrics = results.batches.set_index(cells)[list(BATCH_METRICS)]
    return gammas[list(SETTINGS.methods)].join(metrics)


def errors(trajectory: Trajectory, folder: Path) -> pd.DataFrame:
    """Return the largest relative errors at the latest checkpoints, a row per checkpoint."""
    latest = replace(trajectory, checkpoints=trajectory.checkpoints[-LATEST:])
    single = quantities(latest, "float32", folder / "float32")
    double = quantities(latest, "float64", folder / "float64")
    found = ((single - double) / double).abs().groupby("checkpoint").max()
    return found.assign(largest=double["imbalance"].groupby("checkpoint").max())


def main() -> None:
    """Measure, print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    arguments = parser.parse_args()
    text = HEAD + machine("cpu") + "\n\n"
    text += lines(
        "trajectory", "checkpoint", *SETTINGS.methods, *BATCH_METRICS, "largest imbalance"
    )
    with tempfile.TemporaryDirectory() as name:
        for label, trajectory in trajectories(Path(name)):
            table = errors(trajectory, Path(name) / label)
            for checkpoint, row in table.iterrows():
                text += line(label, str(checkpoint), *(f"{value:.1e}" for value in row))
    print(text)
    if arguments.write:
        REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
