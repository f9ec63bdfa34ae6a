"""Commands on a device: a study, its report, costs, trainings, and batches that ranks split."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import evalkit
from evalkit.cli import main
from evalkit.group import Group
from evalkit.linearization.entry import linearize
from evalkit.linearization.split import Split
from evalkit.scoring import score_linearization
from tests.cuda.comparison import within_their_errors
from tests.support.cases import CASES
from tests.support.other_device import NAME
from tests.support.ranks import together

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "checkpoints" / "digits-mlp"
METHODS = "sgd,ef,ief,sf,ngd"


def test_a_run(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = {}
    for turn, place in enumerate((device, "cpu")):
        out = tmp_path / str(turn)
        request = ["--methods", METHODS, "--batches", "1", "--out", str(out)]
        assert main(["score", str(CHECKPOINTS), *request, "--device", place]) == 0
        tables[turn] = pd.read_csv(out / "scores.csv")
        assert main(["report", str(out)]) == 0
    within_their_errors(tables[0], tables[1])
    capsys.readouterr()


def test_costs(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if device == NAME:
        pytest.skip("nothing counts what a device takes that is written in Python")
    request = ["--methods", "sgd,ief", "--repetitions", "1", "--out", str(tmp_path / "cost")]
    assert main(["cost", "digits-mlp", *request, "--device", device]) == 0
    assert device in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["adamw", "ief", "sf", "kfac:labels=improved"])
def test_a_training_starts_and_goes_on(optimizer: str, device: str, tmp_path: Path) -> None:
    """Steps are those on a CPU, but for rounding; an interrupted training ends alike."""
    if (optimizer, device) == ("adamw", NAME):
        pytest.skip("states of torch's optimisers are saved as torch's own tensors alone")
    given = ["train", "digits-mlp", "--optimizer", optimizer, "--learning-rate", "0.01"]
    given += ["--weight-decay", "0", "--epochs", "2", "--checkpoint-every", "1"]
    given += ["--damping", "1e-2"] if optimizer != "adamw" else []
    losses = []
    for turn, place in enumerate((device, "cpu")):
        folder = tmp_path / str(turn)
        assert main([*given, "--device", place, "--out", str(folder)]) == 0
        assert main([*given, "--device", place, "--out", str(folder), "--resume"]) == 0
        losses.append(pd.read_csv(folder / "history.csv")["loss"])
    np.testing.assert_allclose(losses[0][:20], losses[1][:20], rtol=1e-3)


def test_two_ranks_of_torchrun_split_batches_on_one_device(device: str, tmp_path: Path) -> None:
    """Both have the one card, between whose ranks NCCL would refuse to carry anything."""
    if device == NAME:
        pytest.skip("processes that are started know no device that is written in Python")
    out, plain = tmp_path / "run", tmp_path / "plain"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    request = [str(CHECKPOINTS), "--methods", METHODS, "--batches", "1", "--batch-size", "32"]
    device_of_all = ["--device", device, "--split-batch", "--out", str(out)]
    done = subprocess.run(
        [*start, "-m", "evalkit", "score", *request, *device_of_all],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert main(["score", *request, "--device", "cpu", "--out", str(plain)]) == 0
    within_their_errors(pd.read_csv(out / "scores.csv"), pd.read_csv(plain / "scores.csv"))


SPLIT = ("ef", "ief", "sf", "kfac", "ngd:solver=direct")


def split_scores(rank: int) -> pd.DataFrame | None:
    """What two processes that share one device make of a batch, in the one that leads."""
    split = Split(Group())
    batch = CASES["convolution_group_norm"].make().on(os.environ["EVALKIT_TEST_DEVICE"])
    given = batch.model, batch.inputs, batch.targets
    if not split.leads:
        split.follow(lambda: given)
        return None
    with split.leading():
        lin = linearize(*given, batch.likelihood, split=split)
        return pd.DataFrame(score_linearization(lin, SPLIT, (1e-3,), 0))


def test_two_processes_of_one_device_split_a_batch(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gloo carries what cards of their own would send each other."""
    if device == NAME:
        pytest.skip("processes that are started know no device that is written in Python")
    monkeypatch.setenv("EVALKIT_TEST_DEVICE", device)
    found, _ = together(split_scores)
    batch = CASES["convolution_group_norm"].make()
    assert found is not None
    within_their_errors(found, evalkit.score(*batch, methods=SPLIT, damping=1e-3))
