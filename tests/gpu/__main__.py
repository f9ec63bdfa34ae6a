"""The kit for a GPU: the tests of a card, then the tables of ``reports/benchmarks-gpu.md``.

``python -m tests.gpu``, or ``make gpu PYTHON=python3``, where torch finds an NVIDIA card. Every
part is a process with a limit of its own, all of them end within ``--limit`` seconds, and what a
start did not finish the next one goes on with. ``--device cpu --scale tiny`` rehearses the kit
without a card, and writes no figure into the project's reports.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests.benchmarks.architectures import FULL, SCALES
from tests.benchmarks.markdown import machine
from tests.gpu.parts import MOST_WORKERS, Kit, parts
from tests.gpu.passed import outcomes
from tests.gpu.report import put, section_of_parts, section_of_tests
from tests.gpu.running import DONE, LEFT_OUT, ROOT, Kept, run

LIMIT = 530.0
"""Seconds for all parts: with what the machine takes to start them, nine minutes."""


def installed(wheels: Path | None, folder: Path) -> Path | None:
    """Return where carried wheels are unpacked, without a network and beside what is installed."""
    if wheels is None:
        return None
    files = sorted(str(path) for path in wheels.glob("*.whl"))
    if not files:
        raise SystemExit(f"expected wheels in {wheels}, found none; see docs/guides/gpu.md")
    site = folder / "site"
    shutil.rmtree(site, ignore_errors=True)
    quiet = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *quiet, "--target", str(site), *files], check=True
    )
    return site


def main() -> int:
    """Run the parts and return the exit status: 0 where all that can be done is done, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu", "other"), default="cuda")
    parser.add_argument("--scale", choices=SCALES, default=FULL, help="tiny: a rehearsal")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all parts")
    parser.add_argument("--only", action="append", help="a word of the names of parts to run")
    parser.add_argument("--tests", default="", help="some tests alone, as pytest -k takes them")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that the image lacks")
    parser.add_argument("--folder", type=Path, help="what is kept between starts")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "expected an NVIDIA card, found none that torch can use; rehearse the kit with "
            "--device cpu --scale tiny"
        )
    folder = arguments.folder or ROOT / "runs" / "gpu" / f"{arguments.device}-{arguments.scale}"
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    site = installed(arguments.wheels, folder)
    share = importlib.util.find_spec("xdist") is not None
    workers = min(MOST_WORKERS, (os.cpu_count() or 2) // 2) if share else 1
    kit = Kit(arguments.device, arguments.scale, folder, workers, arguments.tests)
    where = machine(arguments.device)
    kept = Kept(folder, where)
    if kept.fresh:
        for path in (kit.outcomes, kit.outcomes.with_name(kit.outcomes.name + ".new")):
            path.unlink(missing_ok=True)
    every = parts(arguments.scale)
    chosen = [
        part
        for part in every
        if not arguments.only or any(word in part.name for word in arguments.only)
    ]

    def written() -> None:
        sections = [section_of_parts([kept.of(part) for part in every], where)]
        if found := outcomes(kit.outcomes):
            sections.insert(0, section_of_tests(found, where))
        put(kit.report, *sections)

    run(chosen, kit, kept, arguments.limit, site, written)
    written()
    print(section_of_parts([kept.of(part) for part in every], where))
    print(f"wrote {kit.report}")
    return int(any(kept.of(part).state not in (DONE, LEFT_OUT) for part in chosen))


if __name__ == "__main__":
    sys.exit(main())
