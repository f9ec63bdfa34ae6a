"""``evalkit compare``: trainings side by side, and whether gamma ranks them as their losses do."""

from __future__ import annotations

from pathlib import Path

import click

from evalkit.cli.console import print_frame, remark_gaps, say, say_wrapped
from evalkit.cli.options import RUNS, STYLE, out, path_option


@click.command(
    "compare",
    short_help="Trainings side by side: losses, gamma, and whether the one ranks the other.",
    epilog="""\b
Examples:
  evalkit compare runs/adamw-0 runs/adamw-1 runs/sgd-0 runs/sgd-1 --out runs/compared
  evalkit compare trainings/* --reference runs/adamw-all-methods --out runs/compared
""",
)
@RUNS
@path_option(
    "--reference",
    "reference",
    "RUN",
    "Scores of many methods on one trajectory, to rank all optimizers by.",
)
@STYLE
@out("Write figures and tables here.")
def command(
    runs: tuple[Path, ...], reference: Path | None, style: str, folder: Path | None
) -> None:
    """Compare trainings of one task: curves, final losses, gamma, and their rank correlation.

    RUN is a folder of 'evalkit score', which names the training that it scored, or of 'evalkit
    train'. Trainings that differ in their seed alone are one line and one row.
    """
    from evalkit.figures.layouts import chosen_layouts
    from evalkit.report.comparison import compare_folders, write_comparison
    from evalkit.results.comparisons import shown_table
    from evalkit.results.rankings import correlation_sentences

    layouts = chosen_layouts(style)
    comparison = compare_folders(runs, reference)
    for run in comparison.runs:
        remark_gaps(run)
    if folder is not None:
        write_comparison(comparison, folder, layouts)
    print_frame(
        shown_table(comparison),
        "final training loss (mean of the last 100 steps), and gamma relative to SGD's",
    )
    for line in (*correlation_sentences(comparison.correlations), *comparison.notes):
        say_wrapped(line)
    say("Nothing is written without --out" if folder is None else f"Comparison: {folder.resolve()}")
