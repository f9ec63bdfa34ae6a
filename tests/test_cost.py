"""The table of costs: its rows and units, what a piece of work is, and refused input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from evalkit.bench.cost import measure_costs
from evalkit.bench.memory import peak_mebibytes
from evalkit.bench.timing import in_turns
from evalkit.cli import main
from evalkit.settings import Settings
from evalkit.tasks import Task

METHODS = ("sf:labels_per_sample=2", "ngd")
ALONE = ["forward", "backward", "training step", "linearize", "all scores"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of costs of the digits task."""
    folder = tmp_path_factory.mktemp("cost")
    arguments = ["--methods", ",".join(METHODS), "--batch-size", "8", "--repetitions", "3"]
    assert main(["cost", "digits-mlp", *arguments, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "cost.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def provenance(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cost.json").read_text())


def test_every_piece_of_work_has_a_row(rows: pd.DataFrame) -> None:
    assert rows.loc[rows["method"] == "", "work"].tolist() == ALONE
    for work in ("update", "score"):
        assert tuple(rows.loc[rows["work"] == work, "method"]) == METHODS
    assert (rows.loc[rows["method"] == "ngd", "iterations"].astype(int) > 0).all()
    assert (rows.loc[rows["method"] != "ngd", "iterations"] == "").all()


def test_milliseconds_are_steps_times_the_training_step(rows: pd.DataFrame) -> None:
    [step] = rows.loc[rows["work"] == "training step", "ms"]
    for quantile in ("", "_low", "_high"):
        steps, ms = rows["steps" + quantile], rows["ms" + quantile]
        assert (steps > 0).all()
        assert ms.to_numpy() == pytest.approx(steps * step, rel=1e-9)
    assert (rows["steps_low"] <= rows["steps"]).all()
    assert (rows["steps"] <= rows["steps_high"]).all()
    assert rows.loc[rows["work"] == "training step", "steps"].item() == pytest.approx(1)


def test_the_table_follows_from_the_times_on_record(
    rows: pd.DataFrame, provenance: dict[str, Any]
) -> None:
    costs = rows.set_index(["work", "method"])["steps"]
    assert len(provenance["seconds"]) == len(rows) - 1
    for item in provenance["seconds"]:
        assert len(item["seconds"]) == 3
        ratios = np.divide(item["seconds"], item["step_seconds"])
        assert costs[item["work"], item["method"]] == pytest.approx(np.median(ratios))


def test_provenance_says_what_was_measured(provenance: dict[str, Any]) -> None:
    expected = {"task": "digits-mlp", "num_samples": 8, "num_params": 8970, "dtype": "float32"}
    assert expected.items() <= provenance.items()
    assert provenance["methods"] == list(METHODS)
    assert provenance["machine"]["threads"] == torch.get_num_threads()
    assert provenance["versions"]["torch"] == str(torch.__version__)


def test_memory_is_there_and_counts_the_gradient(rows: pd.DataFrame) -> None:
    peaks = rows[rows["work"] != "backward"].set_index(["work", "method"])["peak_mib"].astype(float)
    assert peaks["training step", ""] > 8970 * 4 / 2**20
    assert peaks["update", "ngd"] > peaks["linearize", ""]
    assert (rows.loc[rows["work"] == "backward", "peak_mib"] == "").all()


@pytest.mark.parametrize(("blocks", "peak"), [(1, 1.0), (3, 3.0)])
def test_peak_memory_is_what_is_held_at_a_time(blocks: int, peak: float) -> None:
    def work() -> None:
        held = [torch.zeros(2**18) for _ in range(blocks)]
        held.clear()
        torch.zeros(2**18)

    assert peak_mebibytes(work, CPU) == pytest.approx(peak, abs=1e-3)


def test_standard_error_is_back_after_work_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        peak_mebibytes(lambda: 1 / 0, CPU)
    print("heard", file=sys.stderr)
    assert capfd.readouterr().err.endswith("heard\n")


def test_pieces_take_turns_with_the_step_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def piece(name: str, took: float) -> float:
        calls.append(name)
        return took if calls.count(name) > 1 else 100.0

    pieces = {"a": lambda: piece("a", 6.0), "b": lambda: piece("b", 1.0)}
    found = in_turns(pieces, lambda: piece("step", 2.0), 2)
    assert {name: timing.steps for name, timing in found.items()} == {"a": (3, 3), "b": (0.5, 0.5)}
    assert "".join(name[0] for name in calls) == "s" + 3 * "sssassssssbsss"


class Watched(nn.Linear):
    """Keeps the sizes and types of the batches that it sees."""

    seen: set[tuple[int, torch.dtype, torch.dtype]]

    def forward(self, x: Tensor) -> Tensor:
        type(self).seen.add((len(x), x.dtype, self.weight.dtype))
        return super().forward(x)


@pytest.mark.parametrize(
    ("size", "dtype", "sizes"),
    [
        (None, torch.float32, {6, 2}),
        (4, torch.float64, {4, 2, 1}),
    ],
)
def test_every_forward_keeps_to_micro_batches_and_precision(
    size: int | None, dtype: torch.dtype, sizes: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two samples are run again, and with micro-batches one by one."""
    # The profiler that counts blocks takes half a second to start, for each piece of work.
    monkeypatch.setattr("evalkit.bench.cost.peak_mebibytes", lambda work, device: work() and None)
    Watched.seen = set()
    task = Task(
        model=lambda: Watched(3, 1),
        data=lambda: (torch.ones(8, 3), torch.arange(8.0).unsqueeze(1)),
        likelihood="gaussian",
        name="watched",
    )
    settings = Settings(methods=("sgd",), batch_size=6, micro_batch_size=size, dtype=str(dtype)[6:])
    progress: list[tuple[int, int]] = []
    measure_costs(task, settings, 1, lambda done, total, _: progress.append((done, total)))
    assert Watched.seen == {(samples, dtype, dtype) for samples in sizes}
    done, totals = zip(*progress, strict=True)
    assert done == tuple(range(totals[0]))
    assert len(set(totals)) == 1


BAD = {
    "unknown task": (["digits-mpl"], "did you mean 'digits-mlp'"),
    "no task": ([], "TASK"),
    "unknown method": (["digits-mlp", "--methods", "iefs"], "did you mean 'ief'"),
    "no method": (["digits-mlp", "--methods", ","], "at least one method"),
    "no repetition": (["digits-mlp", "--repetitions", "0"], "--repetitions"),
    "more than data": (["digits-mlp", "--batch-size", "9999"], "--batch-size"),
    "no micro-batch": (["digits-mlp", "--micro-batch-size", "0"], "--micro-batch-size"),
    "half precision": (["digits-mlp", "--dtype", "float16"], "float64"),
    "unknown device": (["digits-mlp", "--device", "gpu"], "--device"),
    "missing file": (["{tmp}/none.py:task"], "none.py"),
    "load missing": (["digits-mlp", "--load", "{tmp}/no.py"], "no.py"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, hint = BAD[case]
    filled = [part.format(tmp=tmp_path) for part in arguments]
    assert main(["cost", *filled, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("evalkit: error: ")
    assert hint in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_out_is_left_out_of_every_piece(tmp_path: Path) -> None:
    file, found = tmp_path / "normed.py", {}
    file.write_text(
        "import torch, evalkit\n\n"
        "def model():\n"
        "    parts = torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)\n"
        "    return torch.nn.Sequential(*parts)\n\n"
        "def data():\n"
        "    return torch.linspace(-1, 1, 36).view(12, 3), torch.arange(12) % 2\n\n"
        'task = evalkit.Task(model=model, data=data, likelihood="categorical")\n'
    )
    for others in ("block", "leave"):
        out = tmp_path / others
        asked = ["--methods", "kfac", "--batch-size", "6", "--repetitions", "1"]
        assert main(["cost", f"{file}:task", *asked, "--others", others, "--out", str(out)]) == 0
        found[others] = json.loads((out / "cost.json").read_text())
        assert found[others]["others"] == others
    assert found["block"]["num_params"] - found["leave"]["num_params"] == 8


def test_methods_that_need_more_than_a_batch_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("optimizer:decay=false", "fopng"):
        assert main(["cost", "digits-mlp", "--methods", f"sgd,{name}"]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"found '{name}', whose cost is that of its training too; leave it out" in said
