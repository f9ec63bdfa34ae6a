"""Small runs with chosen ratios, for the tests of the gate."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from evalkit.gate.baseline import baseline_of, update_baseline
from evalkit.gate.baseline_file import Baseline, read_baseline
from evalkit.gate.check import check
from evalkit.gate.comparison import Check, Comparison
from evalkit.gate.output import terminal_table
from evalkit.storage.run_folder import Run, read_run
from tests.support.written_runs import cell, score_row, write_run

SGD_GAMMA = 2.0


@dataclass(frozen=True)
class Made:
    """What a run of the tests is made of; the floor is at gamma 1.

    Attributes:
        ratios: per method, a ratio per batch; the same at every checkpoint.
        checkpoints: their names.
        dampings: each method is scored at each.
        uphill: batches in which every method but SGD ascends.
        loss: of every batch.
        sgd_gamma: of every batch.
        sgd: whether SGD is scored.
        settings: changes of the settings.
        provenance: changes of the rest of run.json.
        hashes: changes of the checkpoints' hashes.
        errors: stated, per method; of the others none.
        stopped: methods whose solver stopped before its tolerance.
    """

    ratios: Mapping[str, Sequence[float]] = field(
        default_factory=lambda: {"ef": (0.5, 0.6, 0.7, 0.8)}
    )
    checkpoints: Sequence[str] = ("first",)
    dampings: Sequence[float] = (1e-12,)
    uphill: Sequence[int] = ()
    loss: float = 0.5
    sgd_gamma: float = SGD_GAMMA
    sgd: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    stopped: Sequence[str] = ()

    def write(self, folder: Path) -> Run:
        """Write the run and read it."""
        cells = []
        for step, name in enumerate(self.checkpoints):
            for batch in range(max(map(len, self.ratios.values()))):
                rows = [
                    self._row(method, ratios[batch], batch, damping)
                    for method, ratios in self._scored().items()
                    for damping in self.dampings
                    if batch < len(ratios)
                ]
                cells.append(cell(name, step, float(step), batch, rows, loss=self.loss))
        return read_run(write_run(folder, cells, self._provenance()))

    def _scored(self) -> dict[str, Sequence[float]]:
        sgd = {"sgd": (1.0,) * max(map(len, self.ratios.values()))} if self.sgd else {}
        return {**sgd, **self.ratios}

    def _row(self, method: str, ratio: float, batch: int, damping: float) -> dict[str, Any]:
        slope = -1.0 if method != "sgd" and batch in self.uphill else 1.0
        slope = 0.0 if math.isinf(ratio) else slope
        stated: dict[str, Any] = {"error": self.errors.get(method, math.nan), "dtype": "float64"}
        if method in self.stopped:
            stated |= {"solver": "cg", "iterations": 3, "converged": False}
        return score_row(method, ratio, self.sgd_gamma, damping=damping, slope=slope, **stated)

    def _provenance(self) -> dict[str, Any]:
        settings = {"seed": 0, "batch_size": 8, "likelihood": "categorical", "dtype": "float32"}
        return {
            "evalkit": "0.1.0",
            "versions": {"torch": "2.13.0"},
            "task": "digits-mlp",
            "settings": settings | dict(self.settings),
            "checkpoints": [
                {"name": name, "sha256": self.hashes.get(name, "ab" * 32)}
                for name in self.checkpoints
            ],
            "finished": "2025-01-04T10:21:30+00:00",
            **self.provenance,
        }


def baseline(folder: Path, made: Made) -> Baseline:
    """Return the baseline of a run, through its file."""
    update_baseline(folder / "baseline.csv", made.write(folder / "expected"))
    return read_baseline(folder / "baseline.csv")


def checked(folder: Path, obtained: Made, expected: Made, tolerance: float = 0.05) -> Check:
    """Return what the gate says of one run against the baseline of another."""
    found = baseline_of(obtained.write(folder / "obtained"))
    return check(found, baseline(folder, expected), tolerance)


def rows_of(check: Check, method: str = "ef") -> dict[str, Comparison]:
    return {row.metric: row for row in check.comparisons if row.method == method}


def printed(check: Check) -> list[str]:
    """Return the lines of the terminal table, without its frame."""
    table = terminal_table(check)
    assert table is not None
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return [line.strip() for line in console.file.getvalue().splitlines() if line.strip(" ─")]
