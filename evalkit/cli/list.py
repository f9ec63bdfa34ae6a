"""``evalkit list``: tasks, methods, optimizers and schedules."""

import shutil
import textwrap

import click

_WIDEST = 100


@click.command(
    "list",
    short_help="List tasks, methods, optimizers and schedules.",
    epilog="""\b
Examples:
  evalkit list
""",
)
def command() -> None:
    """List the registered tasks, methods, optimizers and schedules of the learning rate."""
    from evalkit import tasks
    from evalkit.cli.early import registered

    click.echo("Tasks, and the settings that --set gives them")
    _show({name: ", ".join(tasks.setting_names(name)) for name in tasks.task_names()})
    click.echo("Methods")
    _show(registered("method"))
    click.echo("Optimizers of 'evalkit train'")
    _show(registered("optimizer"))
    click.echo("Schedules of the learning rate")
    _show(registered("schedule"))


def _show(entries: dict[str, str]) -> None:
    """Print names and texts in two columns that fit the terminal."""
    first = max(map(len, entries)) + 4
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    for name, text in entries.items():
        click.echo(
            textwrap.fill(
                text or name,
                width,
                initial_indent=f"  {name}".ljust(first) if text else "  ",
                subsequent_indent=" " * first,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
