"""``evalkit toy``: the updates as arrows on problems of two parameters."""

from __future__ import annotations

from pathlib import Path

import click

from evalkit.cli.console import say
from evalkit.cli.option_types import Number
from evalkit.cli.options import STYLE, out
from evalkit.settings import DEFAULT_DAMPING


@click.command(
    "toy",
    short_help="Draw update fields and trajectories on a problem of two parameters.",
    epilog="""\b
Examples:
  evalkit toy least-squares
  evalkit toy logistic --damping 1e-3 --out runs/logistic-damped
""",
)
@click.argument("problem", metavar="PROBLEM")
@click.option(
    "--damping",
    type=Number(float),
    default=DEFAULT_DAMPING,
    show_default=True,
    help="Absolute damping of every method.",
)
@out("Folder of figure and tables; default: runs/toy-PROBLEM.")
@STYLE
def command(problem: str, damping: float, folder: Path | None, style: str) -> None:
    """Draw SGD, NGD, iEF and EF on PROBLEM: least-squares or logistic.

    Writes the figure (PNG and SVG), and landscape.csv, field.csv, trajectories.csv and toy.json,
    from which it can be drawn again.
    """
    from evalkit.figures.layouts import chosen_layouts
    from evalkit.figures.toy_figures import write_toy_figure
    from evalkit.storage.files import make_folder
    from evalkit.toy import PROBLEMS, Tracing, compute_toy
    from evalkit.toy_tables import write_toy

    chosen, tracing = PROBLEMS.get(problem), Tracing(damping=damping)
    layouts = chosen_layouts(style)
    folder = make_folder(folder if folder is not None else Path("runs") / f"toy-{problem}")
    toy = compute_toy(chosen, tracing)
    write_toy(toy, folder)
    for layout in layouts:
        for path in write_toy_figure(toy, folder, layout):
            say(path)
