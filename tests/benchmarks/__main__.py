"""Cost of the engine beside its peers, in training steps, on four problems.

Run ``make bench``. A training step is one forward and backward of the same model on the same batch;
each figure is a median of ratios measured in turns in one process, for products the median of
several processes. ``--write`` puts the table into ``reports/benchmarks.md``. Only ratios count:
times depend on the machine and on its other load. The processes are fresh and keep freed memory as
the command line does, for our work, the peers' and the step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmarks import commands
from tests.benchmarks.markdown import machine
from tests.benchmarks.marks import verdicts
from tests.benchmarks.measure import Memory, Row, measure, memory
from tests.benchmarks.problems import PROBLEMS
from tests.benchmarks.table import as_markdown

REPORT = Path(__file__).parents[2] / "reports" / "benchmarks.md"


def main() -> None:
    """Measure, print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problem", action="append", choices=[p.name for p in PROBLEMS])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    parser.add_argument("--only", choices=["commands"], help="seconds that commands take, alone")
    arguments = parser.parse_args()
    if arguments.only:
        commands.main(REPORT if arguments.write else None)
        return
    chosen = [p for p in PROBLEMS if not arguments.problem or p.name in arguments.problem]
    rows: list[Row] = []
    memories: list[Memory] = []
    for problem in chosen:
        print(f"measuring {problem.name} ...", flush=True)
        found = measure(problem, arguments.device)
        rows += found
        memories.append(memory(problem, arguments.device))
        print(*found, memories[-1], sep="\n", flush=True)
        where = machine(arguments.device, "curvlinops-for-pytorch")
        text = as_markdown(rows, memories, verdicts(rows, memories), where)
        if arguments.write:  # as far as it has come, so that an interruption loses one problem
            suffix = "" if arguments.device == "cpu" else f"-{arguments.device}"
            path = REPORT.with_stem(REPORT.stem + suffix)
            path.write_text(commands.kept(path, text), encoding="utf-8")
    print(text)
    if not arguments.problem and arguments.device == "cpu":
        commands.main(REPORT if arguments.write else None)


if __name__ == "__main__":
    main()
