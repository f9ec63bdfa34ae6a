"""Cost of the engine beside its peers, in training steps, on four problems.

Run ``make bench``. A training step is one forward and backward of the same model on the same batch;
each figure is a median of ratios measured in turns in one process, for products the median of
several processes. ``--write`` puts the table into ``reports/benchmarks.md``; with ``--problem`` or
``--only`` it leaves all other rows there as they are. Only ratios count:
times depend on the machine and on its other load. The processes are fresh and keep freed memory as
the command line does, for our work, the peers' and the step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmarks import commands, optimizers
from tests.benchmarks.committed import merged
from tests.benchmarks.markdown import kept, machine
from tests.benchmarks.marks import verdicts
from tests.benchmarks.measure import KINDS, Memory, Row, measure, memory
from tests.benchmarks.problems import PROBLEMS, REHEARSED, Problem
from tests.benchmarks.structured import structured
from tests.benchmarks.table import as_markdown

REPORT = Path(__file__).parents[2] / "reports" / "benchmarks.md"
SECTIONS = {"optimizers": optimizers.main, "commands": commands.main}
"""What is measured by itself and has a section of the report to itself."""


def main() -> None:
    """Measure, print the table, and write it if asked to."""
    problems = (*PROBLEMS, REHEARSED)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problem", action="append", choices=[p.name for p in problems])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--write", action="store_true", help="write the report")
    parser.add_argument("--report", type=Path, help=f"instead of {REPORT.name}")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*KINDS, "structured", "memory", *SECTIONS],
        help="kinds of rows",
    )
    arguments = parser.parse_args()
    if arguments.only and set(arguments.only) <= SECTIONS.keys():
        for name in arguments.only:
            SECTIONS[name](REPORT if arguments.write else None)
        return
    kinds = arguments.only or [*KINDS, "structured", "memory"]
    report = arguments.report or REPORT
    # What is left out of this run stays in the report.
    some = bool(arguments.problem or arguments.only) and report.exists()
    chosen: tuple[Problem, ...] = PROBLEMS
    if arguments.problem:
        chosen = tuple(p for p in problems if p.name in arguments.problem)
    rows: list[Row] = []
    memories: list[Memory] = []
    text = ""
    for problem in chosen:
        print(f"measuring {problem.name} ...", flush=True)
        found = measure(problem, arguments.device, kinds)
        if "structured" in kinds:
            found += structured(problem, arguments.device)
        held = [memory(problem, arguments.device)] if "memory" in kinds else []
        rows, memories = rows + found, memories + held
        print(*found, *held, sep="\n", flush=True)
        where = machine(arguments.device, "curvlinops-for-pytorch")
        if some:
            label = ", ".join([problem.name, *(arguments.only or ())])
            known = text or report.read_text(encoding="utf-8")
            text = merged(known, label, found, held, where) if found or held else known
        else:
            text = as_markdown(rows, memories, verdicts(rows, memories), where)
        if arguments.write:  # as far as it has come, so that an interruption loses one problem
            report.write_text(
                kept(report, text, optimizers.TITLE, commands.TITLE), encoding="utf-8"
            )
    print(text)
    whole = not some and not arguments.problem and arguments.device == "cpu"
    for name, section in SECTIONS.items():
        if whole or name in kinds:
            section(REPORT if arguments.write else None)


if __name__ == "__main__":
    main()
