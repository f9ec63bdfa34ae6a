"""``evalkit errors``: how far structures are from the exact Fisher matrix, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from evalkit.cli.console import print_frame, say, say_wrapped
from evalkit.cli.early import check_names, check_there
from evalkit.cli.option_types import Number
from evalkit.cli.options import (
    BATCH_SIZE,
    CHECKPOINTS,
    DAMPINGS,
    DEVICE,
    KEY,
    LOAD,
    MICRO_BATCH_SIZE,
    ORDER,
    OTHERS,
    SEED,
    SET,
    TASK,
    batch_count,
    method_names,
    out,
)
from evalkit.settings import PROBES, Others, Settings

if TYPE_CHECKING:
    from evalkit.diagnosis.running import Tables

METHODS = ("kfac:labels=exact", "ekfac:labels=exact", "kpsvd:labels=exact", "block:labels=exact")
SCALES = ("sgd", "ief")


@click.command(
    "errors",
    short_help="Compare methods' matrices with the exact one, layer by layer.",
    epilog="""\b
Examples:
  evalkit errors checkpoints/digits-mlp
  evalkit errors checkpoints/digits-mlp --methods kfac,ekfac:labels=exact --out runs/errors
  evalkit errors my-checkpoints --task my_task.py:task --batches 5 --batch-size 64
""",
)
@CHECKPOINTS
@TASK
@SET
@LOAD
@method_names("Methods whose matrix has a block for each layer, with settings if wanted.", METHODS)
@method_names(
    "Further methods, of any kind, whose layer scales alone are found.", SCALES, "--scales"
)
@DAMPINGS
@batch_count("Batches per checkpoint, the first of those that 'evalkit score' takes.", 2)
@BATCH_SIZE
@SEED
@ORDER
@KEY
@click.option(
    "--probes",
    type=Number(int),
    default=PROBES,
    show_default=True,
    help="Random probes of a block that is too large for its exact errors.",
)
@click.option(
    "--dtype",
    type=str,
    default="float64",
    show_default=True,
    help="Precision of the whole evaluation, float32 or float64.",
)
@MICRO_BATCH_SIZE
@DEVICE
@OTHERS
@out("Write errors.csv, scales.csv and errors.json here, after every batch.", "run")
def command(
    folder: Path,
    task: str | None,
    task_settings: tuple[tuple[str, str], ...],
    code: tuple[str, ...],
    methods: tuple[str, ...],
    scales: tuple[str, ...],
    dampings: tuple[float, ...],
    batches: int,
    batch_size: int,
    seed: int,
    order: tuple[str, ...] | None,
    key: str | None,
    probes: int,
    dtype: str,
    micro_batch_size: int | None,
    device: str,
    others: Others,
    run: Path | None,
) -> None:
    """Compare methods' undamped matrices with the exact Fisher matrix at every checkpoint in DIR.

    Error 1 is |F - F~| / |F| in the Frobenius norm, Error 2 the same of the singular values, for
    every layer, all layers together, and the whole matrix. Layer scales tell whether a direction
    is worse for what it is within layers or for the scales between them: its efficiency as it is,
    and with the best scale for each layer.
    """
    check_there(folder)
    check_names("method", (*methods, *scales), (*code, task))
    settings = Settings(
        methods, dampings, batches, batch_size, seed, dtype, micro_batch_size, device, others
    )
    from evalkit.checkpoints import open_trajectory, trajectory_task
    from evalkit.cli.progress import shown_progress
    from evalkit.diagnosis.running import Request, run_errors
    from evalkit.tasks.loading import load_code

    for location in code:
        load_code(location)
    request = Request(settings, scales, probes)
    request.check()
    trajectory = open_trajectory(folder, order, key)
    for note in trajectory.notes:
        say_wrapped(note)
    loaded = trajectory_task(trajectory, task, dict(task_settings))
    with shown_progress(loaded.name) as shown:
        tables = run_errors(trajectory, loaded, request, run, shown.update)
    _print(tables)
    say("Nothing is written without --out" if run is None else f"Tables in {run}")


def _print(tables: Tables) -> None:
    from evalkit.diagnosis.matrix_errors import ALL, WHOLE
    from evalkit.results.diagnoses import (
        error_table,
        layer_table,
        scale_table,
        shown_checkpoints,
    )

    shown = shown_checkpoints(tables.errors)
    errors, scales = (
        table[table["checkpoint"].isin(shown)] for table in (tables.errors, tables.scales)
    )
    print_frame(
        error_table(errors, ALL, WHOLE),
        "Error 1 (Frobenius norm) and Error 2 (spectrum) against the exact blocks of all layers; "
        "Error 1 against the whole matrix, and what of it lies between layers",
    )
    print_frame(layer_table(errors, shown[-1], (ALL, WHOLE)), f"Error 1 by layer at {shown[-1]}")
    print_frame(
        scale_table(scales),
        "efficiency (floor / gamma) as it is and with the best scale for each layer, and the "
        "scales, parts of the best common one",
    )
    count = tables.errors["checkpoint"].nunique()
    if count > len(shown):
        say_wrapped(f"The tables show {len(shown)} of {count} checkpoints; errors.csv has all.")
