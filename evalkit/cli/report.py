"""``evalkit report``: figures and page from the tables of a run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    "report",
    short_help="Draw the figures and the page of a run.",
    epilog="""\b
Examples:
  evalkit report runs/digits-mlp
""",
)
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
def command(run: Path) -> None:
    """Write figures (PNG and SVG) and a self-contained report.html into RUN, from its tables."""
    from evalkit.page import write_report

    page = write_report(run)
    click.echo(f"Report: {page.resolve()}")
