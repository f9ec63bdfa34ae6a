"""``evalkit export``: a run for TensorBoard, Weights & Biases, MLflow, or as Parquet."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from evalkit.cli.console import remark, say
from evalkit.cli.options import RUN, out
from evalkit.export.tools import TOOLS

_LOOK = {
    "tensorboard": "tensorboard --logdir {folder}",
    "wandb": "wandb sync {folder}/wandb/offline-run-*",
    "mlflow": "MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {folder}",
    "parquet": "python -c \"import pandas; print(pandas.read_parquet('summary.parquet'))\" there",
}


@click.command(
    "export",
    short_help="Write a run for TensorBoard, W&B or MLflow, or as Parquet.",
    epilog="""\b
Examples:
  evalkit export runs/digits-mlp --to tensorboard
  evalkit export runs/digits-mlp --to wandb --out exports/wandb
  evalkit export runs/digits-mlp --to parquet
""",
)
@RUN
@click.option(
    "--to", "tool", required=True, type=click.Choice(TOOLS), help="What to write the run for."
)
@out("New, empty, or an earlier export to the same tool; without it RUN/exports/TOOL.")
def command(run: Path, tool: str, folder: Path | None) -> None:
    """Write gamma, ratios and losses of RUN at the steps of its training, without a network.

    Values are means over batches, as the report has them. Values that are not to be relied on go by
    another name, unreliable_gamma; what is infinite or undefined is left out and said.
    """
    from evalkit.storage.run_folder import read_run

    found = read_run(run)
    from evalkit.export.writing import export_run

    exported = export_run(found, tool, folder)
    for note in exported.notes:
        remark("note", note)
    say(f"Export: {exported.folder}")
    say(f"Look: {_LOOK[tool].format(folder=shlex.quote(str(exported.folder)))}")
