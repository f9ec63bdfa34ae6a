"""``evalkit list``: tasks and methods."""

import shutil
import textwrap

import click

_WIDEST = 100


@click.command(
    "list",
    short_help="List tasks and methods.",
    epilog="""\b
Examples:
  evalkit list
""",
)
def command() -> None:
    """List the registered tasks, methods and optimizers."""
    from evalkit import tasks
    from evalkit.cli.early import registered

    click.echo("Tasks, and the settings that --set gives them")
    _show({name: ", ".join(tasks.setting_names(name)) for name in tasks.task_names()})
    click.echo("Methods")
    _show(registered("method"))
    click.echo("Optimizers")
    click.echo(f"  {', '.join(registered('optimizer'))}")


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
