"""``evalkit list``: tasks and methods."""

import click


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
    from evalkit import optimizers, tasks
    from evalkit.updates import methods
    from evalkit.updates.registry import describe

    click.echo("Tasks")
    for name in tasks.task_names():
        settings = tasks.setting_names(name)
        click.echo(f"  {name:19}settings: {', '.join(settings)}" if settings else f"  {name}")
    click.echo("Methods")
    for name in methods():
        click.echo(f"  {name:14}{describe(name)}")
    click.echo("Optimizers")
    click.echo(f"  {', '.join(optimizers.names())}")
