"""``evalkit report``: figures and page from the tables of a run, or figures of several."""

from __future__ import annotations

from pathlib import Path

import click

from evalkit.cli.console import remark_gaps, say
from evalkit.cli.option_types import CommaSeparated
from evalkit.cli.options import RUNS, STYLE, out
from evalkit.cli.wording import in_options
from evalkit.errors import EvalkitError


@click.command(
    "report",
    short_help="Draw the figures and the page of a run, or of several in one figure.",
    epilog="""\b
Examples:
  evalkit report runs/digits-mlp
  evalkit report runs/digits-mlp --pairs ief/sgd,sf/ef,ef@1e-6/ief --style paper
  evalkit report runs/digits-mlp --slide
  evalkit report runs/cola runs/sst2 runs/rte --out runs/glue
""",
)
@RUNS
@click.option(
    "--pairs",
    type=CommaSeparated(str, "a/b,c/d"),
    help="Methods to divide, METHOD[@DAMPING]/METHOD[@DAMPING], with commas between; several runs: "
    "ef/sgd,ief/sgd,sf/sgd.",
)
@STYLE
@click.option(
    "--slide",
    is_flag=True,
    help="Also draw figures/slide.png and .svg of one RUN, 16:9: headline, ratios and their table.",
)
@out("Where figures and tables of several runs go; without it those of one go into its folder.")
def command(
    runs: tuple[Path, ...],
    pairs: tuple[str, ...] | None,
    style: str,
    slide: bool,
    folder: Path | None,
) -> None:
    """Write figures, tables of pairs and dampings, and a self-contained report.html into RUN.

    Several RUNs are lines of the same figures, a panel per pair of methods, and of one page.
    """
    from evalkit.results.pairs import parse_pair
    from evalkit.storage.run_folder import read_run

    alone = len(runs) == 1 and folder is None
    if slide and not alone:
        raise EvalkitError(
            "expected one RUN without `out` for a `slide`, found "
            f"{'`out`' if len(runs) == 1 else f'{len(runs)} runs'}; draw a slide of each by itself"
        )
    chosen = [parse_pair(pair) for pair in pairs or ()]
    found = [read_run(run) for run in runs]  # before what draws is loaded, which takes a second
    from evalkit.figures.layouts import chosen_layouts
    from evalkit.report.writing import report_run, report_runs

    layouts = chosen_layouts(style)
    if alone:
        report = report_run(runs[0], chosen, layouts, in_options, slide)
    else:
        report = report_runs(runs, chosen, layouts, folder, in_options)
    for read in found:
        remark_gaps(read)
    for line in report.statements:
        say(line)
    say(f"Report: {report.place.resolve()}")
