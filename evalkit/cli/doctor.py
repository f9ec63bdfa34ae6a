"""``evalkit doctor``: a dry run of a study, and what to change."""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evalkit.cli.console import say
from evalkit.cli.early import check_names
from evalkit.cli.options import (
    BATCH_SIZE,
    DAMPINGS,
    DEVICE,
    DTYPE,
    KEY,
    LOAD,
    MICRO_BATCH_SIZE,
    ORDER,
    OTHERS,
    SEED,
    SET,
    TASK,
    batch_count,
    json_flag,
    method_names,
)
from evalkit.cli.wording import in_options
from evalkit.counts import counted
from evalkit.errors import EvalkitError
from evalkit.machine import own_processes
from evalkit.registry import suggest
from evalkit.settings import Others, Settings

if TYPE_CHECKING:
    from evalkit.doctor import Finding, Report, Subject

_WIDTH = 80
_VERDICTS = {
    0: "Fine: nothing has to be changed.",
    1: "It can be scored, and something should be changed: {changes}.",
    2: "It cannot be scored as it is.",
}
_SHOWN = {"ok": "ok", "warn": "change", "fail": "fail"}


@click.command(
    "doctor",
    short_help="Try one batch, and say what would be wrong, slow or too large.",
    epilog="""\b
Examples:
  evalkit doctor digits-mlp
  evalkit doctor my_task.py:task --batch-size 32
  evalkit doctor checkpoints/digits-mlp --checkpoint step-000920 --methods sgd,ief,ngd
  evalkit doctor my-lora-run --task glue-cola --set data=my-data --json
""",
)
@click.argument("target", metavar="TASK|DIR")
@TASK
@click.option(
    "--checkpoint", metavar="NAME", help="Checkpoint of DIR to look at; default: the first."
)
@SET
@LOAD
@method_names("Methods of the study that is planned, with settings if wanted.")
@DAMPINGS
@batch_count("Batches per checkpoint of the study that is planned; one is tried.")
@BATCH_SIZE
@SEED
@ORDER
@KEY
@DTYPE
@MICRO_BATCH_SIZE
@DEVICE
@OTHERS
@json_flag("Print findings with their numbers as JSON.")
def command(
    target: str,
    task: str | None,
    checkpoint: str | None,
    task_settings: tuple[tuple[str, str], ...],
    code: tuple[str, ...],
    methods: tuple[str, ...],
    dampings: tuple[float, ...],
    batches: int,
    batch_size: int,
    seed: int,
    order: tuple[str, ...] | None,
    key: str | None,
    dtype: str | None,
    micro_batch_size: int | None,
    device: str,
    others: Others,
    as_json: bool,
) -> int:
    """Try one batch of a planned study, and say what would be wrong, slow or too large.

    TASK is a registered name, file.py:attribute or module:attribute, with its model as initialised;
    DIR holds checkpoints, as for 'evalkit score'. Options are those of 'evalkit score', and nothing
    is written. Exit status: 0 fine, 1 something should be changed, 2 it cannot be scored.
    """
    is_folder = _is_folder(target, task)
    check_names("method", methods, (*code, task, None if is_folder else target))
    settings = Settings(
        methods, dampings, batches, batch_size, seed, dtype, micro_batch_size, device, others
    )
    if not is_folder:
        for option, value in (("--checkpoint", checkpoint), ("--order", order), ("--key", key)):
            if value is not None:
                raise EvalkitError(
                    f"expected no {option} for the task '{target}', found one; give a folder of "
                    "checkpoints with --task, or leave it out"
                )
    processes = own_processes()  # before torch is loaded
    from evalkit.cli.progress import shown_progress
    from evalkit.doctor import examine
    from evalkit.scoring import check_request
    from evalkit.tasks.loading import load_code

    for location in code:
        load_code(location)
    check_request(methods, dampings, past=True, optimizer=True)
    opened = (Path(target), order, key) if is_folder else None
    subject = _subject(target, opened, (task, dict(task_settings)), settings, checkpoint)
    with shown_progress(subject.task) as shown:
        count = iter(range(1000))
        report = examine(subject, processes, lambda name: shown.update(next(count), _CHECKS, name))
    (_print_json if as_json else _print)(subject, report)
    return report.status


_CHECKS = 14


def _is_folder(target: str, task: str | None) -> bool:
    """Return whether the target is one of checkpoints, and not a task.

    Raises:
        EvalkitError: it is neither.
    """
    if task is not None or os.sep in target.rpartition(":")[2] or target in (".", ".."):
        found = os.path.lexists(target)
        if found or task is not None:
            if not found:
                raise _nothing(target)
            return True
    from evalkit.tasks import task_names

    if target in task_names() or ":" in target or target.endswith(".py"):
        return False
    if os.path.lexists(target):
        return True
    raise _nothing(target, task_names())


def _nothing(target: str, names: Any = ()) -> EvalkitError:
    near = suggest(target, names) if names else "check the path, or make one with `evalkit train`"
    kind = "a task (a registered name, file.py:attribute) or " if names else ""
    return EvalkitError(
        f"expected {kind}a folder of checkpoints, found nothing at '{target}'; {near}"
    )


def _subject(
    target: str,
    opened: tuple[Path, tuple[str, ...] | None, str | None] | None,
    spec: tuple[str | None, dict[str, str]],
    settings: Settings,
    checkpoint: str | None,
) -> Subject:
    from evalkit.doctor import of_task, of_trajectory

    if opened is None:
        from evalkit.tasks import load_task

        return of_task(load_task(target, spec[1]), settings)
    from evalkit.checkpoints import open_trajectory, trajectory_task

    trajectory = open_trajectory(*opened)
    return of_trajectory(trajectory, trajectory_task(trajectory, *spec), settings, checkpoint)


def _print(subject: Subject, report: Report) -> None:
    """Print the verdict and a table of findings, worst first, on lines of 80 characters."""
    changes = ", ".join(one.name for one in report.findings if one.verdict != "ok")
    say(_wrapped(_heading(subject)))
    say(_wrapped(_VERDICTS[report.status].format(changes=changes)))
    say("")
    first = 2 + max(map(len, _SHOWN.values())) + 2
    names = max(len(one.name) for one in report.findings) + 2
    for one in report.findings:
        for line in _lines(one, first, names):
            say(line)
    if report.left_out:
        say("")
        say(_wrapped(f"Not looked at before that: {', '.join(report.left_out)}."))


def _lines(one: Finding, first: int, names: int) -> Iterator[str]:
    """Yield a finding in three columns, with what to do below it."""
    left = f"  {_SHOWN[one.verdict]}".ljust(first) + one.name.ljust(names)
    width, indent = _WIDTH, " " * len(left)
    yield _wrapped(in_options(one.finding), left, indent, width)
    if one.cure:
        yield _wrapped(in_options(one.cure), f"{indent}-> ", f"{indent}   ", width)


def _wrapped(text: str, first: str = "", following: str = "", width: int = _WIDTH) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=following,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _heading(subject: Subject) -> str:
    settings = subject.settings
    at = "as initialised" if subject.checkpoint is None else f"at {subject.checkpoint}"
    return (
        f"{subject.task}, {at}: a batch of {counted(subject.batch.size, 'sample')} for "
        f"{', '.join(settings.methods)}, on {settings.device}"
    )


def _print_json(subject: Subject, report: Report) -> None:
    from evalkit.version import __version__

    content = {
        "evalkit": __version__,
        "task": subject.task,
        "checkpoint": subject.checkpoint,
        "checkpoints": subject.checkpoints,
        "verdict": report.verdict,
        "status": report.status,
        "findings": [
            {
                "name": one.name,
                "verdict": one.verdict,
                "finding": in_options(one.finding),
                "cure": in_options(one.cure),
                "numbers": _plain(one.numbers),
            }
            for one in report.findings
        ],
        "left_out": list(report.left_out),
    }
    say(json.dumps(content, indent=2))


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it, which has no infinite numbers: they are texts."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
