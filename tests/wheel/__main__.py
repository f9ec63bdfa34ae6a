"""Build the wheel, install it alone into an empty environment, and use it there.

``python -m tests.wheel --python python3.12 --out runs/dist`` leaves the wheel and the source
distribution in ``--out``. Every command of evalkit runs in a folder outside of the repository, of
which nothing may be read, first without the extras, whose absence is a sentence each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.wheel.environment import build_wheel, empty_environment
from tests.wheel.walk import walk


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, install and walk; the exit status is 1 where a step went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.wheel", description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="of the environment")
    parser.add_argument("--out", type=Path, required=True, help="folder of the wheel")
    given = parser.parse_args(arguments)
    wheel = build_wheel(given.out)
    with tempfile.TemporaryDirectory() as folder:
        environment = empty_environment(Path(folder).resolve(), given.python)
        environment.install(str(wheel.resolve()))
        faults = 0
        for fault in walk(environment):
            faults += 1
            print(f"fault: {fault}", flush=True)
    print(f"{wheel}: {faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
