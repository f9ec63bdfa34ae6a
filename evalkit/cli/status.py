"""``evalkit status``: how far a run is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evalkit.cli.console import print_frame, say, say_wrapped
from evalkit.cli.options import RUN, json_flag
from evalkit.counts import counted
from evalkit.errors import shortened

if TYPE_CHECKING:
    from evalkit.storage.run_status import Process, RunStatus

_REASONS = 5
"""Reasons of failures that are shown."""


@click.command(
    "status",
    short_help="Show how far a run is, while it goes on or after.",
    epilog="""\b
Examples:
  evalkit status runs/digits-mlp
  evalkit status runs/digits-mlp --json
""",
)
@RUN
@json_flag("Print one JSON object.")
def command(run: Path, as_json: bool) -> None:
    """Show what of RUN is done, running, left and failed, by process, and the time left.

    Reads alone, so that it may be given at any time while other processes write.
    """
    from dataclasses import asdict

    from evalkit.storage.run_status import run_status

    status = run_status(run)
    if as_json:
        click.echo(json.dumps({"run": str(run), **asdict(status)}, indent=2))
        return
    for line in _lines(run, status):
        say_wrapped(line)
    if status.processes:
        _print_processes(status.processes)
    for reason, count in list(status.reasons.items())[:_REASONS]:
        say_wrapped(f"failed, {count}: {reason}")


def _lines(run: Path, status: RunStatus) -> list[str]:
    from evalkit.cli.progress import duration

    counts = (
        f"{run}: {status.done} of {counted(status.total, 'batch')} done, {status.running} running, "
        f"{status.left} left, {status.failed} failed"
    )
    if status.done == status.total:
        return [counts]
    alive = sum(one.state in ("running", "unknown") for one in status.processes)
    if not alive:
        return [counts, "Nothing runs; the same 'evalkit score' command goes on"]
    if status.seconds_left is None or status.seconds_per_batch is None:
        return [f"{counts}; the time left is not known before the first is done"]
    return [
        f"{counts}; about {duration(status.seconds_left)} left in {counted(alive, 'process')}, "
        f"{duration(status.seconds_per_batch)} a batch"
    ]


def _print_processes(processes: tuple[Process, ...]) -> None:
    import pandas as pd

    from evalkit.cli.progress import duration

    rows = []
    for one in processes:
        at = ""
        if one.checkpoint is not None:
            since = "" if one.seconds_running is None else f", {duration(one.seconds_running)}"
            at = f"{shortened(one.checkpoint, 40)}, batch {one.batch}{since}"
        each = "" if one.seconds_per_batch is None else duration(one.seconds_per_batch)
        rows.append(
            (
                one.writer,
                f"{shortened(one.host, 30)}:{one.pid}",
                one.state,
                str(one.done),
                str(one.failed),
                each,
                at,
            )
        )
    heads = ["writer", "process", "state", "done", "failed", "a batch", "now"]
    print_frame(pd.DataFrame(rows, columns=heads), "")
    say("")
