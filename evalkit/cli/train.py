"""``evalkit train``: make a trajectory of checkpoints."""

from __future__ import annotations

from pathlib import Path

import click

from evalkit.cli.console import say
from evalkit.cli.early import check_names
from evalkit.cli.options import SET, Number


@click.command(
    "train",
    short_help="Train a task and save its trajectory of checkpoints.",
    epilog="""\b
Examples:
  evalkit train digits-mlp --out my-checkpoints
  evalkit train digits-mlp --optimizer sgd --learning-rate 0.1 --epochs 60 --out sgd-checkpoints
  evalkit train glue-cola --set model=my-model --set adapter=prompt --out cola-checkpoints
  evalkit train my_task.py:task --out my-checkpoints
""",
)
@click.argument("task", metavar="TASK")
@SET
@click.option(
    "--out",
    "folder",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of the checkpoints; new or empty.",
)
@click.option("--optimizer", metavar="NAME", help="See 'evalkit list'; default: the task's.")
@click.option("--learning-rate", type=Number(float), help="For the mean loss; default: the task's.")
@click.option("--weight-decay", type=Number(float), help="Default: the task's.")
@click.option("--epochs", type=Number(int), help="Default: the task's.")
@click.option("--batch-size", type=Number(int), help="Samples per step; default: the task's.")
@click.option("--checkpoint-every", type=Number(int), metavar="EPOCHS", help="Default: the task's.")
@click.option(
    "--seed",
    type=Number(int),
    default=0,
    show_default=True,
    help="Of initial values and the order of the samples.",
)
def command(
    task: str,
    task_settings: tuple[tuple[str, str], ...],
    folder: Path,
    seed: int,
    **recipe: float | str | None,
) -> None:
    """Train TASK and save a trajectory: the initialised model, then a checkpoint every few epochs.

    TASK is a registered name (see 'evalkit list'), file.py:attribute or package.module:attribute.
    """
    optimizer = recipe["optimizer"]
    check_names("optimizer", () if optimizer is None else (str(optimizer),), (task,))
    from evalkit.cli.progress import shown_progress
    from evalkit.tasks import load_task
    from evalkit.training.loop import Epoch, train

    loaded = load_task(task, dict(task_settings))
    with shown_progress(loaded.name) as shown:

        def show(epoch: Epoch) -> None:
            shown.update(epoch.number, epoch.of, f"{loaded.name} loss {epoch.loss:.4g}")

        trajectory = train(loaded, folder=folder, seed=seed, on_epoch=show, **recipe)  # type: ignore[arg-type]
    last = trajectory.checkpoints[-1]
    accuracy = last.validation_accuracy
    validated = "" if accuracy is None else f", validation accuracy {accuracy:.1%}"
    say(
        f"{len(trajectory.checkpoints)} checkpoints in {folder}; at the end training loss "
        f"{last.training_loss:.4g}{validated}"
    )
