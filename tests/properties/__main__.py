"""Draw many random models: ``python -m tests.properties --examples 20000 --seed 0``."""

from __future__ import annotations

import argparse
import time
import traceback
import warnings

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from tests.properties import PROPERTIES
from tests.support.strategies import Plan


def drawn(name: str, examples: int, seed: int) -> int:
    """Hold one property to so many plans, print what fails, and return how many do."""
    found, failed = PROPERTIES[name], 0

    @seeded(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(found.plans)
    def each(plan: Plan) -> None:
        nonlocal failed
        try:
            found.check(plan)
        except Exception as error:
            failed += 1
            text = str(error) or traceback.format_exc(limit=-2)
            print(f"{name}: {type(error).__name__}: {text}\n  {plan}", flush=True)

    each()
    return failed


def main() -> int:
    """Draw plans for each property in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="of each property")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PROPERTIES, help="one property")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start, failed, step = time.monotonic(), 0, 100
    names = [given.only] if given.only else list(PROPERTIES)
    done = dict.fromkeys(names, 0)
    for part in range(0, given.examples, step):
        for name in names:
            if time.monotonic() - start > given.seconds:
                break
            failed += drawn(name, min(step, given.examples - part), given.seed * 10**6 + part)
            done[name] += min(step, given.examples - part)
    print(f"{done}: {failed} failed in {time.monotonic() - start:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
