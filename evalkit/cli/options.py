"""Option types that several commands share."""

from __future__ import annotations

from typing import Any

import click

from evalkit.errors import EvalkitError, shortened
from evalkit.settings import PAST_BATCHES, Settings


class CommaSeparated(click.ParamType):
    """Values separated by commas, each of one type, as a tuple.

    Args:
        kind: converts one value (``str`` or ``float``).
        name: how help and errors call the option's value.
    """

    def __init__(self, kind: type, name: str) -> None:
        self.kind = kind
        self.name = name

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        try:
            return tuple(self.kind(part) for part in parts)
        except ValueError:
            found = shortened(str(value))
            self.fail(f"expected numbers separated by commas, found '{found}'", param, ctx)


class Number(click.ParamType):
    """One number; the error says what was found.

    Args:
        kind: ``int`` or ``float``.
    """

    name = "number"

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return self.kind(value)
        except ValueError:
            wanted = "a whole number" if self.kind is int else "a number"
            self.fail(f"expected {wanted}, found '{shortened(str(value))}'", param, ctx)


class SettingText(click.ParamType):
    """``NAME=VALUE``, as a pair."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not name.strip() or not equals:
            self.fail(f"expected NAME=VALUE, found '{value}'", param, ctx)
        return name.strip(), text.strip()


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


class PastText(click.ParamType):
    """``TASK=CHECKPOINT``, as a pair."""

    name = "TASK=CHECKPOINT"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        task, _, path = str(value).partition("=")
        if not task.strip() or not path.strip():
            self.fail(
                f"expected a past task with its checkpoint, TASK=CHECKPOINT, found "
                f"'{shortened(str(value))}'",
                param,
                ctx,
            )
        return task.strip(), path.strip()


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
STYLE = click.option(
    "--style",
    default="screen",
    show_default=True,
    help="screen: PNG and SVG; paper: also PDF and SVG for the columns of an article.",
)
