"""Options that several commands share, each declared once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from evalkit.cli.option_types import CommaSeparated, Number, PastText, SettingText
from evalkit.errors import EvalkitError
from evalkit.settings import PAST_BATCHES, Settings

Declared = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What declares an option of a command, as a decorator."""


def check_given_once(command: click.Command, context: click.Context, arguments: list[str]) -> None:
    """Refuse an option that is given again, unless it is declared repeatable: the last would count.

    Args:
        command: whose options they are.
        context: the context of the command above it.
        arguments: the arguments of the command.

    Raises:
        EvalkitError: an option with a value is given twice.
    """
    try:
        inner = click.Context(command, parent=context, info_name=command.name)
        _, _, order = command.make_parser(inner).parse_args(list(arguments))
    except click.UsageError:
        return  # said when the command itself reads them
    for option in order:
        if not isinstance(option, click.Option) or option.multiple or option.is_flag:
            continue
        if sum(other is option for other in order) > 1:
            several = isinstance(option.type, CommaSeparated)
            advice = f"write {option.opts[0]} {option.type.name}" if several else "drop one"
            raise EvalkitError(f"expected {option.opts[0]} once, found it again; {advice}")


def method_names(
    text: str, default: Sequence[str] | None = Settings.methods, option: str = "--methods"
) -> Declared:
    """Return the option of a list of methods.

    Args:
        text: its help, which says what becomes of them.
        default: methods without it; None where the help tells.
        option: its name.
    """
    return click.option(
        option,
        type=CommaSeparated(str, "a,b"),
        default=None if default is None else ",".join(default),
        show_default=default is not None,
        help=text,
    )


def batch_count(text: str, default: int = Settings.batches) -> Declared:
    """Return the option of the number of batches.

    Args:
        text: its help.
        default: without it.
    """
    return click.option(
        "--batches", type=Number(int), default=default, show_default=True, help=text
    )


def path_option(
    option: str, parameter: str, metavar: str, text: str, required: bool = False
) -> Declared:
    """Return an option that names a file or folder.

    Args:
        option: its name.
        parameter: that of the command's function.
        metavar: what help calls the path.
        text: its help, which says what is there without it.
        required: whether the command cannot do without.
    """
    kind = click.Path(path_type=Path)
    return click.option(option, parameter, metavar=metavar, type=kind, required=required, help=text)


def out(
    text: str, parameter: str = "folder", metavar: str = "DIR", required: bool = False
) -> Declared:
    """Return the option of the folder that a command writes.

    Args:
        text: its help, which says what is written without it.
        parameter: of the command's function.
        metavar: what help calls the folder.
        required: whether the command cannot do without.
    """
    return path_option("--out", parameter, metavar, text, required)


RUN = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
RUNS = click.argument(
    "runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
CHECKPOINTS = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
TASK_NAME = click.argument("task", metavar="TASK")
SET = click.option(
    "--set",
    "task_settings",
    multiple=True,
    type=SettingText(),
    help="A setting of the task, such as its model or data; see 'evalkit list'; repeatable.",
)
LOAD = click.option(
    "--load",
    "code",
    multiple=True,
    metavar="FILE.py",
    help="Python file or module to import first, for methods of your own; repeatable.",
)
TASK = click.option(
    "--task", metavar="TASK", help="Registered name, file.py:attribute or module:attribute."
)
DAMPINGS = click.option(
    "--damping",
    "dampings",
    type=CommaSeparated(float, "x[,y...]"),
    default=",".join(f"{value:g}" for value in Settings.dampings),
    show_default=True,
    help="Absolute damping; several make a sweep.",
)
SEED = click.option(
    "--seed",
    type=Number(int),
    default=Settings.seed,
    show_default=True,
    help="Of the batches and of sampled labels.",
)
ORDER = click.option(
    "--order",
    type=CommaSeparated(str, "a,b"),
    help="Of checkpoints whose names tell none: name, time, or the names in order.",
)
KEY = click.option(
    "--key",
    metavar="NAME",
    help="Where the weights lie in each file: a key, or how the tensors' names begin.",
)
BATCH_SIZE = click.option(
    "--batch-size",
    type=Number(int),
    default=Settings.batch_size,
    show_default=True,
    help="Samples per batch.",
)
DTYPE = click.option(
    "--dtype",
    type=str,
    help="Precision of the whole evaluation, float32 or float64; default: the model's own.",
)
MICRO_BATCH_SIZE = click.option(
    "--micro-batch-size",
    type=Number(int),
    help="Samples held in memory at a time; results stay the same, time grows.",
)
DEVICE = click.option(
    "--device",
    default=Settings.device,
    show_default=True,
    help="Where the model is: cpu, cuda, cuda:1, ...",
)
OTHERS = click.option(
    "--others",
    default=Settings.others,
    show_default=True,
    help="Of parameters without factors: block (each its own), gradient, or leave (all rows "
    "without them).",
)
PAST = click.option(
    "--past",
    "past",
    multiple=True,
    type=PastText(),
    help="A past task and its checkpoint, or a folder of which the last counts, for fopng; "
    "repeatable.",
)
PAST_BATCHES_OPTION = click.option(
    "--past-batches",
    type=Number(int),
    default=PAST_BATCHES,
    show_default=True,
    help="Batches of each past task, a gradient each.",
)
PAST_LABELS = click.option(
    "--past-labels",
    default="sampled",
    show_default=True,
    help="Labels of the past tasks' Fisher matrix: sampled, exact, empirical, improved or floor.",
)
OPTIMIZER = click.option(
    "--optimizer",
    "optimizer",
    metavar="CLASS",
    help="Class of the saved optimizers, such as adamw, for the method 'optimizer', where their "
    "files do not tell.",
)


def json_flag(text: str) -> Declared:
    """Return the flag that prints JSON, whose help says what is in it."""
    return click.option("--json", "as_json", is_flag=True, help=text)


STYLE = click.option(
    "--style",
    default="screen",
    show_default=True,
    help="screen: PNG and SVG; paper: also PDF and SVG for the columns of an article.",
)
