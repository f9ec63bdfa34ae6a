"""The group of commands, and what becomes of errors: one sentence and an exit status."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from evalkit.errors import EvalkitError
from evalkit.machine import keep_freed_memory
from evalkit.registry import suggest
from evalkit.version import __version__

UNUSABLE_INPUT = 2
INTERRUPTED = 130
COMMANDS = ("train", "score", "report", "check", "toy", "cost", "list")


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
        return super().resolve_command(ctx, args)


@click.command(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  evalkit score checkpoints/digits-mlp --methods sgd,ef,ief,sf,ngd --out runs/digits-mlp
  evalkit report runs/digits-mlp
  evalkit train digits-mlp --out my-checkpoints
  evalkit score my-checkpoints --task my_task.py:task --batches 20
""",
)
@click.version_option(__version__, prog_name="evalkit")
@click.pass_context
def commands(context: click.Context) -> None:
    """Score approximate natural-gradient updates against the exact natural gradient."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: default: those of the process.

    Returns:
        0 done, 2 input that cannot be used (said in one sentence), 130 interrupted.
    """
    keep_freed_memory()
    try:
        result = commands.main(
            args=None if arguments is None else list(arguments),
            prog_name="evalkit",
            standalone_mode=False,
        )
    except EvalkitError as error:
        return _refuse(str(error))
    except click.UsageError as error:
        place = error.ctx.command_path if error.ctx else "evalkit"
        return _refuse(f"{error.format_message().rstrip('.')}; see '{place} --help'")
    except click.ClickException as error:
        return _refuse(error.format_message())
    except OSError as error:
        name = f" '{error.filename}'" if error.filename else ""
        return _refuse(
            f"expected to read and write files, found {error.strerror or error}{name}; "
            "check the path, the permissions and the free space"
        )
    except (KeyboardInterrupt, click.Abort):
        given = list(sys.argv[1:] if arguments is None else arguments)
        hint = "; the same command goes on where it stopped" if given[:1] == ["score"] else ""
        print(f"evalkit: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _refuse(sentence: str) -> int:
    print(f"evalkit: error: {sentence}", file=sys.stderr)
    return UNUSABLE_INPUT
