"""The group of commands, and what becomes of errors: one sentence and an exit status."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence

import click

from evalkit.cli.console import remark
from evalkit.cli.options import check_given_once
from evalkit.errors import EvalkitError, reason
from evalkit.interruption import INTERRUPTED, TERMINATED, Terminated, handled
from evalkit.launch import is_first
from evalkit.machine import keep_freed_memory, let_threads_sleep
from evalkit.registry import suggest
from evalkit.version import __version__

UNUSABLE_INPUT = 2
DEBUG = "--debug"
COMMANDS = (
    "train",
    "doctor",
    "score",
    "status",
    "report",
    "compare",
    "export",
    "check",
    "toy",
    "cost",
    "errors",
    "list",
)


class _Commands(click.Group):
    """Commands by name; each lies in the module of that name and is imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"evalkit.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise EvalkitError(f"unknown command '{args[0]}'; {suggest(args[0], COMMANDS)}")
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            check_given_once(command, ctx, rest)
        return name, command, rest


@click.command(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  evalkit train digits-mlp --out my-checkpoints
  evalkit score my-checkpoints --methods sgd,ef,ief,sf,ngd --batches 20 --out runs/mine
  evalkit report runs/mine
  evalkit doctor my_task.py:task
""",
)
@click.version_option(__version__, prog_name="evalkit")
@click.option(
    DEBUG, is_flag=True, help="Show where an error comes from, at any place in a command."
)
@click.pass_context
def commands(context: click.Context, debug: bool) -> None:
    """Score approximate natural-gradient updates against the exact natural gradient."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: default: those of the process.

    Returns:
        0 done, 1 not all is well (a check that failed, batches that could not be scored), 2 input
        that cannot be used (said in one sentence), 130 interrupted by Ctrl-C, 143 by SIGTERM.
    """
    keep_freed_memory()
    let_threads_sleep()
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Commands do not know this option: it may stand before and behind their names.
    debug = DEBUG in given
    asked = [argument for argument in given if argument != DEBUG]
    try:
        with handled():
            result = commands.main(args=asked, prog_name="evalkit", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        print(f"evalkit: interrupted{_way_on(asked)}", file=sys.stderr, flush=True)
        return INTERRUPTED
    except Terminated:
        print(f"evalkit: ended by SIGTERM{_way_on(asked)}", file=sys.stderr, flush=True)
        return TERMINATED
    except Exception as error:
        if debug:
            traceback.print_exc()
        if is_first() or not isinstance(error, click.UsageError):
            remark("error", _sentence(error))
        return UNUSABLE_INPUT
    return result if isinstance(result, int) else 0


def _way_on(asked: Sequence[str]) -> str:
    """Return how to go on with a command that was ended, as the end of a sentence."""
    named = any(argument.split("=")[0] == "--out" for argument in asked)
    if asked[:1] == ["score"] or (asked[:1] == ["errors"] and named):
        return "; the same command goes on where it stopped"
    if asked[:1] == ["train"]:
        return "; the same command with --resume goes on from the last checkpoint"
    return ""


def _sentence(error: Exception) -> str:
    """Return what is said of an error: what was expected, what was found, what to do."""
    if isinstance(error, EvalkitError):
        return str(error)
    if isinstance(error, click.UsageError):
        place = error.ctx.command_path if error.ctx else "evalkit"
        return f"{error.format_message().rstrip('.')}; see '{place} --help'"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError):
        name = f" '{error.filename}'" if error.filename else ""
        return (
            f"expected to read and write files, found {error.strerror or error}{name}; "
            "check the path, the permissions and the free space"
        )
    if isinstance(error, MemoryError):
        return (
            "expected enough memory, found too little; lower --batch-size, or set "
            "--micro-batch-size"
        )
    return (
        f"expected input that evalkit can use, found an error of its own ({reason(error)}); give "
        f"the same command with {DEBUG} to see where, and report it"
    )
