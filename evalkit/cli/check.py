"""``evalkit check``: the gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from evalkit.cli.console import remark_gaps, say, say_wrapped
from evalkit.cli.option_types import Number
from evalkit.cli.options import RUN, path_option
from evalkit.cli.wording import in_options
from evalkit.errors import EvalkitError
from evalkit.settings import DEFAULT_TOLERANCE

REGRESSION = 1


@click.command(
    "check",
    short_help="Check a run against a baseline: the gate for CI.",
    epilog="""\b
Exit status: 0 no regression, 1 regression or not comparable, 2 unusable input.
\b
Examples:
  evalkit check runs/mine --baseline reports/baselines/mine.csv --update-baseline
  evalkit check runs/mine --baseline reports/baselines/mine.csv
  evalkit check runs/mine --baseline mine.csv --tolerance 0.02 --junit gate.xml --markdown gate.md
""",
)
@RUN
@path_option(
    "--baseline",
    "baseline",
    "FILE",
    "What scores are compared with; only --update-baseline writes it.",
    required=True,
)
@click.option(
    "--tolerance",
    type=Number(float),
    default=DEFAULT_TOLERANCE,
    show_default=True,
    help="Of the mean log ratio and of the mean efficiency; smaller differences are the same.",
)
@click.option(
    "--update-baseline",
    "update",
    is_flag=True,
    help="Write the scores of RUN as the baseline and print the diff; nothing is checked.",
)
@path_option("--junit", "junit", "FILE", "Write JUnit XML: a test case per comparison.")
@path_option("--markdown", "markdown", "FILE", "Write Markdown, as for a GitHub step summary.")
@path_option(
    "--figure",
    "figure",
    "FILE",
    "Figure of the differences, as PNG and SVG under this name; default: RUN/figures/differences.",
)
def command(
    run: Path,
    baseline: Path,
    tolerance: float,
    update: bool,
    junit: Path | None,
    markdown: Path | None,
    figure: Path | None,
) -> int:
    """Compare the scores of RUN with a baseline, paired by batch, and fail where they are worse.

    Prints what is worse, not comparable, new or improved, worst first.
    """
    outputs = {"--junit": junit, "--markdown": markdown, "--figure": figure}
    if update:
        given = [name for name, path in outputs.items() if path is not None]
        if given:
            raise EvalkitError(
                f"expected --update-baseline alone, found {', '.join(given)} beside it; update "
                "first, then check"
            )
        return _update(run, baseline)
    return _check(run, baseline, tolerance, outputs)


def _update(run: Path, path: Path) -> int:
    from evalkit.gate.baseline import update_baseline
    from evalkit.storage.run_folder import read_run

    diff = update_baseline(path, read_run(run))
    say(diff if diff else f"Baseline {path} is up to date")
    return 0


def _check(run: Path, path: Path, tolerance: float, outputs: dict[str, Path | None]) -> int:
    from evalkit.cli.console import print_table
    from evalkit.gate.baseline import baseline_of
    from evalkit.gate.baseline_file import read_baseline
    from evalkit.gate.check import check
    from evalkit.gate.figure import write_differences
    from evalkit.gate.output import headline, junit, markdown, terminal_table
    from evalkit.storage.files import write_atomically
    from evalkit.storage.run_folder import FIGURES_FOLDER, read_run

    result = read_run(run)
    remark_gaps(result)
    found = check(baseline_of(result), read_baseline(path), tolerance)
    found = replace(found, remarks=tuple(map(in_options, found.remarks)))
    for name, write in (("--junit", junit), ("--markdown", markdown)):
        file = outputs[name]
        if file is not None:
            write_atomically(file, write(found))
    write_differences(found, outputs["--figure"] or run / FIGURES_FOLDER / "differences")
    table = terminal_table(found)
    if table is not None:
        print_table(table)
    for sentence in found.remarks:
        say_wrapped(sentence)
    say(headline(found))
    if found.passed:
        return 0
    say(f"If this is meant: evalkit check {run} --baseline {path} --update-baseline")
    return REGRESSION
