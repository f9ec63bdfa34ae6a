"""``evalkit cost``: what updates and scores cost, in milliseconds and in training steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from evalkit.cli.console import say
from evalkit.cli.early import check_names
from evalkit.cli.option_types import Number
from evalkit.cli.options import (
    BATCH_SIZE,
    DEVICE,
    DTYPE,
    LOAD,
    MICRO_BATCH_SIZE,
    OTHERS,
    SET,
    TASK_NAME,
    method_names,
    out,
)
from evalkit.settings import Others, Settings

if TYPE_CHECKING:
    from evalkit.bench.cost import CostTable


@click.command(
    "cost",
    short_help="Measure the time and memory of every method's update and score.",
    epilog="""\b
Examples:
  evalkit cost digits-mlp
  evalkit cost digits-mlp --methods sgd,ef,ief --batch-size 64 --out runs/cost
  evalkit cost my_task.py:task --micro-batch-size 20 --device cuda
""",
)
@TASK_NAME
@SET
@LOAD
@method_names(
    "Methods, with settings if wanted; default: all that 'evalkit list' shows but "
    "fopng, which needs past tasks, and optimizer, which needs one.",
    None,
)
@BATCH_SIZE
@click.option(
    "--repetitions",
    type=Number(int),
    default=5,
    show_default=True,
    help="Of every piece of work; the table holds medians and quartiles.",
)
@MICRO_BATCH_SIZE
@DTYPE
@DEVICE
@OTHERS
@out("Write cost.csv and cost.json here.")
def command(
    task: str,
    task_settings: tuple[tuple[str, str], ...],
    code: tuple[str, ...],
    methods: tuple[str, ...] | None,
    batch_size: int,
    repetitions: int,
    micro_batch_size: int | None,
    dtype: str | None,
    device: str,
    others: Others,
    folder: Path | None,
) -> None:
    """Measure forward, backward, and every method's update and score on one batch of TASK.

    TASK is a registered name (see 'evalkit list'), file.py:attribute or package.module:attribute;
    its model is taken as initialised. An update or a score starts from model and batch. A training
    step is one forward and backward of the same batch.
    """
    check_names("method", methods or (), (*code, task))
    from evalkit.bench.cost import measure_costs, write_costs
    from evalkit.cli.progress import shown_progress
    from evalkit.storage.files import make_folder
    from evalkit.tasks import load_task
    from evalkit.tasks.loading import load_code
    from evalkit.updates import methods as registered
    from evalkit.updates.registry import takes_batch_alone

    for location in code:
        load_code(location)
    loaded = load_task(task, dict(task_settings))
    alone = tuple(filter(takes_batch_alone, registered()))
    settings = Settings(
        methods=methods if methods is not None else alone,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        dtype=dtype,
        device=device,
        others=others,
    )
    with shown_progress(loaded.name) as shown:
        table = measure_costs(loaded, settings, repetitions, shown.update)
    _print_table(table)
    if folder is not None:
        write_costs(table, make_folder(folder))
        say(f"Table in {folder}")


def _print_table(table: CostTable) -> None:
    import pandas as pd
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from evalkit.cli.console import print_table
    from evalkit.names import display_name
    from evalkit.results.spreads import format_number

    facts = table.provenance
    say(
        f"{facts['task']}: N = {facts['num_samples']}, P = {facts['num_params']:,}, "
        f"{facts['dtype']} on {facts['device']}, threads: {facts['machine']['threads']}\n"
        f"medians of {facts['repetitions']} repetitions; a step is one forward and backward"
    )
    printed = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for position, column in enumerate(("", "ms", "steps", "quartiles", "MiB", "iterations")):
        printed.add_column(Text(column), justify="right" if position else "left", no_wrap=True)
    for row in table.rows.itertuples(index=False):
        name = f"{row.work} {display_name(row.method)}" if row.method else row.work
        numbers = [format_number(value) for value in (row.ms, row.steps)]
        quartiles = " to ".join(map(format_number, (row.steps_low, row.steps_high)))
        peak = "" if pd.isna(row.peak_mib) else format_number(row.peak_mib)
        iterations = "" if pd.isna(row.iterations) else str(row.iterations)
        printed.add_row(*map(Text, (name, *numbers, quartiles, peak, iterations)))
    print_table(printed)
