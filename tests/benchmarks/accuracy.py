"""Scores at the defaults beside those of exact arithmetic, on sixty small problems.

Run ``make accuracy``, which writes ``reports/accuracy.md``. The reference is
`tests/support/exact.py`, which shares no code with the package beside the draw of the sampled
labels.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

import evalkit
from evalkit.doubts import MARKED
from tests.benchmarks.markdown import line, lines, machine
from tests.benchmarks.small_problems import Problem, problems
from tests.support import exact, exact_gammas

REPORT = Path(__file__).parents[2] / "reports" / "accuracy.md"
METHODS = ("sgd", "ef", "ief", "ief-tikhonov", "sf", "ngd")
DAMPINGS = (0.0, 1e-12, 1e-6, 1e-3)
FAR = 1e-2
"""A relative error that no row may have without a mark."""
HEAD = f"""# Accuracy

`make accuracy` measures these tables: gamma of {len(METHODS)} methods at {len(DAMPINGS)} dampings
with the default settings, against the same gamma in ball arithmetic (python-flint), which has as
many bits as nine certain digits take. The sixty problems are five data sets of scikit-learn, scaled
or as they are, times networks of one hidden layer, with more parameters than samples and with
fewer, new and trained for long; the checkpoints are in float32.

`error` is what a row states, `off` how far its gamma is from the exact one, relative to it. A row
is marked where its `error` exceeds {MARKED:g}; undamped, methods are pseudo-inverses, and where
float64 cannot tell which directions belong to them the error is infinite.

"""


def scored(problem: Problem) -> pd.DataFrame:
    """Return the rows of a problem with their exact gammas."""
    model, x, y = problem.trained()
    sampled = drawn(model, x, y, problem.likelihood)

    @cache
    def batch(bits: int) -> exact.Batch:
        with exact.bits(bits):
            return exact.batch(model, x, y, problem.likelihood, sampled)

    found = evalkit.score(model, x, y, problem.likelihood, METHODS, DAMPINGS)
    known = {key: _exact(batch, *key) for key in itertools.product(METHODS, DAMPINGS)}
    found["exact"] = [known[key] for key in zip(found["method"], found["damping"], strict=True)]
    parameters = sum(value.numel() for value in model.parameters())
    return found.assign(**_labels(problem), samples=len(x), parameters=parameters)


def _exact(batch: Callable[[int], exact.Batch], method: str, damping: float) -> float:
    """Return gamma, NaN where the bits that there are do not tell."""
    try:
        return exact_gammas.exact_gamma(batch, method, damping)
    except exact.Unknown:
        return math.nan


def drawn(model: nn.Module, x: Tensor, y: Tensor, likelihood: str) -> Tensor:
    """Return what the sampled Fisher draws with the default seed, for :func:`exact.batch`."""
    lin = evalkit.linearize(model, x, y, likelihood, dtype="float64")
    generator = torch.Generator().manual_seed(0)
    if likelihood == "gaussian":
        return torch.randn(lin.logits.shape, generator=generator, dtype=torch.float64)
    return lin.likelihood.sample_targets(lin.logits, lin.targets, generator)


def _labels(problem: Problem) -> dict[str, object]:
    return {
        "data": problem.data + ("" if problem.scaled else ", as it is"),
        "network": f"{problem.width} {problem.activation.__name__}, {problem.epochs} epochs",
    }


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with how far each is off and what is wrong about it."""
    off = (rows["gamma"] / rows["exact"] - 1).abs()
    marked = rows["error"] > MARKED
    return rows.assign(
        off=off,
        marked=marked,
        double=rows["dtype"] == "float64",
        beyond=off > rows["error"],
        silent=(off > FAR) & ~marked,
    )


def as_markdown(rows: pd.DataFrame, where: str) -> str:
    """Return the whole report."""
    text = HEAD + where + "\n\n"
    unknown = rows["off"].isna().sum()
    text += (
        f"Of {len(rows)} rows {rows['beyond'].sum()} are off by more than their error, and "
        f"{rows['silent'].sum()} by more than {FAR:.0%} without a mark; of {unknown}, undamped, "
        f"{exact_gammas.MOST_BITS} bits do not tell the exact gamma.\n\n## By method\n\n"
    )
    text += _table(rows, ["method", "damping"]) + "\n## By problem\n\n"
    return text + _table(rows, ["data", "network", "samples", "parameters"])


def _table(rows: pd.DataFrame, keys: list[str]) -> str:
    text = lines(
        *keys, "in float64", "marked", "largest off unmarked", "largest off / error", "beyond"
    )
    for key, group in rows.groupby(keys, sort=False):
        unmarked = group[~group["marked"]]
        text += line(
            *(f"{part:g}" if isinstance(part, float) else str(part) for part in key),
            f"{group['double'].mean():.0%}",
            f"{group['marked'].mean():.0%}",
            f"{unmarked['off'].max():.1e}" if len(unmarked) else "",
            f"{(group['off'] / group['error']).max():.2g}",
            str(group["beyond"].sum()),
        )
    return text


def measured(chosen: Iterable[Problem], processes: int) -> pd.DataFrame:
    """Score problems in several processes of one thread each."""
    with ProcessPoolExecutor(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        tables = []
        for table in pool.map(scored, chosen):
            tables.append(judged(table))
            last = tables[-1]
            print(_table(last, ["data", "network"]).splitlines()[-1], flush=True)
        return pd.concat(tables, ignore_index=True)


def main() -> None:
    """Measure, print the tables, and write them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    parser.add_argument("--rows", type=Path, help="write all rows to this CSV file")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    rows = measured(problems(), arguments.processes)
    if arguments.rows:
        rows.to_csv(arguments.rows, index=False)
    text = as_markdown(rows, machine("cpu", "python-flint"))
    print(text)
    if arguments.write:
        REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
