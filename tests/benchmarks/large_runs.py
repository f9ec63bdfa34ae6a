"""How long a RUN of a million rows takes to be read, reported and checked."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.storage.run_folder import append_rows, create_run, read_run

METHODS = tuple(f"{name}{end}" for name in ("sgd", "ef", "ief", "sf", "ngd") for end in ("",))
DAMPINGS = (1e-12, 1e-9, 1e-6, 1e-3)
SAMPLES = 160
TOLERANCE = 0.05


def written(folder: Path, checkpoints: int, batches: int) -> Path:
    """Write a finished RUN of 20 rows a batch, whose numbers are drawn."""
    draw = np.random.default_rng(0)
    cells = list(itertools.product(range(checkpoints), range(batches)))
    checkpoint, batch = (np.array(one) for one in zip(*cells, strict=True))

    def keyed(times: int) -> dict[str, Any]:
        step = np.repeat(checkpoint, times)
        return {
            "checkpoint": [f"step-{one:06d}" for one in step],
            "step": step,
            "progress": step / max(1, checkpoints - 1),
            "batch": np.repeat(batch, times),
        }

    each = len(METHODS) * len(DAMPINGS)
    rows = len(cells) * each
    floor = draw.uniform(0.1, 0.2, len(cells))
    ratio = np.exp(draw.normal(0, 0.3, rows))
    ratio.reshape(len(cells), each)[:, : len(DAMPINGS)] = 1.0  # sgd
    gamma = ratio * np.repeat(draw.uniform(1.0, 2.0, len(cells)), each)
    scores = {
        **keyed(each),
        "method": list(np.repeat(METHODS, len(DAMPINGS))) * len(cells),
        "damping": list(DAMPINGS) * len(METHODS) * len(cells),
        "gamma": gamma,
        "ratio": ratio,
        "efficiency": np.repeat(floor, each) / gamma,
        "fisher_norm": draw.uniform(1, 2, rows),
        "slope": draw.uniform(1, 2, rows),
        "norm": draw.uniform(1, 2, rows),
        "cosine_sgd": draw.uniform(-1, 1, rows),
        "iterations": [None] * rows,
        "relative_residual": [None] * rows,
        "converged": [None] * rows,
        "solver": [None] * rows,
        "error": draw.uniform(0, 1e-6, rows),
        "dtype": ["float32"] * rows,
    }
    measured = {
        **keyed(1),
        "num_samples": [SAMPLES] * len(cells),
        "loss": draw.uniform(0.1, 2, len(cells)),
        "imbalance": draw.uniform(1, 100, len(cells)),
        "logit_imbalance": draw.uniform(1, 100, len(cells)),
        "target_probability": draw.uniform(0, 1, len(cells)),
        "gamma_floor": floor,
        "gram_rank": [SAMPLES] * len(cells),
        "data_sha256": [f"{one:064x}" for one in batch],
    }
    create_run(folder, provenance(checkpoints, batches))
    append_rows(folder, scores, measured)
    return folder


def provenance(checkpoints: int, batches: int) -> dict[str, Any]:
    """Return what ``run.json`` says of it."""
    return {
        "evalkit": "0.1.0",
        "versions": {"torch": "2.13.0"},
        "task": "drawn",
        "settings": {
            "methods": list(METHODS),
            "dampings": list(DAMPINGS),
            "batches": batches,
            "batch_size": SAMPLES,
            "seed": 0,
            "likelihood": "categorical",
            "dtype": "float32",
            "others": "block",
        },
        "checkpoints": [
            {
                "name": f"step-{one:06d}",
                "step": one,
                "progress": one / max(1, checkpoints - 1),
                "sha256": "ab" * 32,
            }
            for one in range(checkpoints)
        ],
        "started": "2025-01-04T10:20:30+00:00",
        "finished": "2025-01-04T10:21:30+00:00",
        "seconds": 60.0,
    }


def timed(name: str, action: Callable[[], Any]) -> float:
    """Print the seconds of the processor and of the clock that something takes, return the first.

    Other work on the machine counts in the second alone.
    """
    started, clock = time.process_time(), time.perf_counter()
    action()
    seconds = time.process_time() - started
    passed = time.perf_counter() - clock
    print(f"{name:20} {seconds:8.1f} s of the processor, {passed:8.1f} s passed", flush=True)
    return seconds


def main(checkpoints: int = 50, batches: int = 1000) -> None:
    """Measure every command that reads a RUN."""
    from evalkit.gate.baseline import baseline_of, update_baseline
    from evalkit.gate.baseline_file import read_baseline
    from evalkit.gate.check import check
    from evalkit.report.writing import report_run
    from evalkit.storage.lost_rows import lost_rows
    from evalkit.storage.run_folder import sort_tables, update_provenance
    from evalkit.storage.run_status import run_status

    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        timed("write", lambda: written(run, checkpoints, batches))
        found = []
        timed("read", lambda: found.append(read_run(run)))
        print(f"{len(found[0].scores)} rows of scores, {len(found[0].batches)} of batches")
        timed("lost rows", lambda: lost_rows(found[0]))
        timed("status", lambda: run_status(run))
        timed("sort", lambda: sort_tables(run))
        update_provenance(run, tables="parquet")
        size = (run / "scores.csv").stat().st_size
        timed("sort as Parquet", lambda: sort_tables(run))
        timed("read Parquet", lambda: read_run(run))
        print(
            f"Parquet takes {(run / 'scores.parquet').stat().st_size / size:.2f} of the CSV's bytes"
        )
        timed("report", lambda: report_run(run))
        baseline = Path(place) / "baseline.csv"
        timed("baseline", lambda: update_baseline(baseline, found[0]))
        timed("check", lambda: check(baseline_of(found[0]), read_baseline(baseline), TOLERANCE))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
