"""Run studies of optimizers: ``python -m tests.studies e2/digits-mlp --seeds 3``.

Trainings and scores go to ``runs/studies``, where an interrupted study goes on; tables, figures and
``report.md`` to ``reports/studies``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tests.studies.report import write_report
from tests.studies.studies import STUDIES
from tests.studies.study import run, shortened

WORK = Path("runs") / "studies"
REPORTS = Path("reports") / "studies"
"""From the root of the repository: what is written names no folder of the machine."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the studies that are named."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies", description=__doc__)
    parser.add_argument("names", nargs="+", choices=list(STUDIES), metavar="NAME")
    parser.add_argument("--epochs", type=int, help="of each training")
    parser.add_argument("--seeds", type=int, help="trainings of each optimizer")
    parser.add_argument("--scored-seeds", type=int, help="of how many trajectories gamma is scored")
    parser.add_argument("--batches", type=int, help="that each checkpoint is scored on")
    parser.add_argument("--only", help="optimizers, with commas between; default: all")
    parser.add_argument("--set", action="append", default=[], help="a setting of the task")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--reports", type=Path, default=REPORTS)
    given = parser.parse_args(arguments)
    numbers = ("epochs", "seeds", "scored_seeds", "batches")
    for name in given.names:
        study = shortened(STUDIES[name], **{number: getattr(given, number) for number in numbers})
        settings = dict(text.split("=", 1) for text in given.set)
        study = shortened(study, settings={**study.settings, **settings})
        if given.only:
            kept = [one for one in study.candidates if one.optimizer in given.only.split(",")]
            study = shortened(study, candidates=tuple(kept))
        work = given.work / study.name / f"epochs-{study.epochs}"
        done = run(study, work)
        if not done.runs:
            raise SystemExit(f"expected a training of {name} that ends, found none; see above why")
        print(write_report(study, done, work, given.reports / study.name))


if __name__ == "__main__":
    main()
