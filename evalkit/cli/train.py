"""``evalkit train``: make a trajectory of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evalkit.cli.console import say
from evalkit.cli.early import check_names
from evalkit.cli.option_types import Number
from evalkit.cli.options import DEVICE, LOAD, SET, TASK_NAME, out
from evalkit.counts import counted


@click.command(
    "train",
    short_help="Train a task and save its trajectory of checkpoints.",
    epilog="""\b
Examples:
  evalkit train digits-mlp --out my-checkpoints
  evalkit train digits-mlp --optimizer sgd --learning-rate 0.1 --momentum 0.9 --out sgd-checkpoints
  evalkit train digits-mlp --optimizer ief --learning-rate 50 --out ief-checkpoints
  evalkit train digits-mlp --out my-checkpoints --resume
  evalkit train glue-cola --set model=my-model --set adapter=prompt --out cola-checkpoints
  evalkit train my_task.py:task --out my-checkpoints
""",
)
@TASK_NAME
@SET
@LOAD
@out(
    "Folder of the checkpoints; new or empty, or with --resume that of a training.",
    required=True,
)
@click.option("--optimizer", metavar="NAME", help="Or a method; default: the task's.")
@click.option("--learning-rate", type=Number(float), help="For the mean loss; default: the task's.")
@click.option("--weight-decay", type=Number(float), help="Default: the task's.")
@click.option("--momentum", type=Number(float), help="Default: the optimizer's.")
@click.option("--damping", type=Number(float), help="For the mean loss; default: the optimizer's.")
@click.option(
    "--normalise/--no-normalise",
    default=None,
    help="Whether steps are as long as the learning rate; default: the optimizer's.",
)
@click.option(
    "--on-failure",
    metavar="raise|skip",
    help="What becomes of a step that cannot be taken; default: the optimizer's.",
)
@click.option(
    "--schedule",
    metavar="NAME",
    help="Of the learning rate: constant, linear, cosine, step:at=0.25:factor=0.1; see 'evalkit "
    "list'; default: the task's.",
)
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
@DEVICE
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with an interrupted training in DIR, by the same options; where there is none, "
    "begin.",
)
def command(
    task: str,
    task_settings: tuple[tuple[str, str], ...],
    code: tuple[str, ...],
    folder: Path,
    seed: int,
    device: str,
    resume: bool,
    **recipe: float | str | None,
) -> None:
    """Train TASK and save a trajectory: the initialised model, then a checkpoint every few epochs.

    Beside each checkpoint lies the state of the optimizer, and history.csv has a row per step.
    TASK is a registered name (see 'evalkit list'), file.py:attribute or package.module:attribute.
    """
    optimizer, schedule = recipe["optimizer"], recipe["schedule"]
    check_names("optimizer", () if optimizer is None else (str(optimizer),), (*code, task))
    check_names("schedule", () if schedule is None else (str(schedule),), (*code, task))
    from evalkit.cli.progress import shown_progress
    from evalkit.storage.rows import TrainingStep
    from evalkit.tasks import load_task
    from evalkit.tasks.loading import load_code
    from evalkit.training import train

    for location in code:
        load_code(location)
    loaded = load_task(task, dict(task_settings))
    with shown_progress(loaded.name) as shown:

        def show(row: TrainingStep) -> None:
            text = f"{loaded.name} epoch {row.epoch}, loss {row.loss:.4g}"
            shown.update(row.step, round(row.step / row.progress), text)

        given: dict[str, Any] = {**recipe, "seed": seed, "device": device, "resume": resume}
        trajectory = train(loaded, folder=folder, on_step=show, **given)
    last = trajectory.checkpoints[-1]
    accuracy = last.validation_accuracy
    validated = "" if accuracy is None else f", validation accuracy {accuracy:.1%}"
    say(
        f"{counted(len(trajectory.checkpoints), 'checkpoint')} in {folder}; at the end training "
        f"loss {last.training_loss:.4g}{validated}"
    )
