"""Parameters without factors: named, and given a block, the gradient, or left out of every row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import evalkit
from evalkit.cli import main
from evalkit.curvature.others import kinds
from evalkit.settings import Settings
from tests.support.cases import CASES, Draw
from tests.support.structured import Oracle
from tests.support.structured_cases import MADE
from tests.support.table import initialise

BARE = ["convolution_group_norm", "embedding_tied_by_attribute", "attention_module"]
WITH_BARE = [*BARE, "two_modules_with_one_weight", "weight_with_and_without_its_bias"]


@pytest.mark.parametrize("name", MADE)
def test_those_without_factors_are_those_that_no_layer_makes(name: str) -> None:
    oracle = Oracle(MADE[name]())
    found = kinds(oracle.lin)
    assert set(found.others) == oracle.without_factors()
    assert not set(found.layers) & set(found.others)


@pytest.mark.parametrize("name", WITH_BARE)
def test_gradient_is_what_it_is_there_in_the_dense_direction(name: str) -> None:
    oracle = Oracle(MADE[name]())
    others = oracle.without_factors()
    if len(others) == len(oracle.places):
        pytest.skip("no layer of this model has factors")
    for structure, labels in (("kfac", "exact"), ("diagonal", "improved")):
        text = f"{structure}:labels={labels}"
        d = evalkit.update(text, oracle.lin, damping=1e-2, others="gradient")
        wanted = oracle.direction(structure, 1e-2, labels, others="gradient")
        assert float((d - wanted).norm()) <= 1e-8 * float(wanted.norm())
    d = evalkit.update("kfac", oracle.lin, damping=1e-2, others="gradient")
    for other in others:
        there = oracle.places[other].flatten()
        assert torch.equal(d[there], oracle.lin.gradient[there])


@pytest.mark.parametrize("name", [*WITH_BARE, "token_labels", "frozen_parameters"])
def test_leave_is_the_same_as_frozen(name: str) -> None:
    """Every row is that of the model whose parameters without factors are frozen."""
    batch = MADE[name]()
    oracle = Oracle(batch)
    before = {name: p.requires_grad for name, p in batch.model.named_parameters()}
    if len(oracle.without_factors()) == len(oracle.places):
        with pytest.raises(evalkit.EvalkitError, match="`others=leave`, found none beside"):
            evalkit.score(*batch, others="leave")
    else:
        left = oracle.left()
        methods = ("sgd", "ief", "kfac:labels=exact", "block:labels=improved")
        table = evalkit.score(*batch, methods=methods, damping=1e-2, others="leave")
        frozen = evalkit.score(*left.batch, methods=methods, damping=1e-2)
        assert table["gamma"].tolist() == pytest.approx(frozen["gamma"].tolist(), rel=1e-12)
        wanted = [
            left.reference.gamma(left.reference.gradient),
            left.reference.gamma(oracle.direction("kfac", 1e-2, "exact", others="leave")),
            left.reference.gamma(oracle.direction("block", 1e-2, "improved", others="leave")),
        ]
        assert table["gamma"][[0, 2, 3]].tolist() == pytest.approx(wanted, rel=1e-8)
    assert {name: p.requires_grad for name, p in batch.model.named_parameters()} == before


def test_leave_holds_where_micro_batches_and_float64_run_the_model_again() -> None:
    batch = CASES["convolution_group_norm"].make(torch.float32)
    methods = ("sgd", "ngd", "kfac:labels=improved")
    whole = evalkit.score(*batch, methods=methods, damping=1e-12, others="leave")
    parts = evalkit.score(
        *batch, methods=methods, damping=1e-12, others="leave", micro_batch_size=2
    )
    assert "float64" in set(whole["dtype"])
    assert parts["gamma"].tolist() == pytest.approx(whole["gamma"].tolist(), rel=1e-4)
    assert all(p.requires_grad for p in batch.model.parameters())


def test_a_model_is_trainable_again_when_scoring_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = CASES["convolution_group_norm"].make()
    monkeypatch.setattr("evalkit.curvature.labels.MOST_OUTPUTS", 0)
    with pytest.raises(evalkit.EvalkitError, match="labels=sampled"):
        evalkit.score(*batch, methods="kfac:labels=exact", others="leave")
    assert all(p.requires_grad for p in batch.model.parameters())


def test_what_is_no_mode_is_refused() -> None:
    batch: Any = CASES["convolution_group_norm"].make()
    lin, wrong = evalkit.linearize(*batch), {"others": "blocks"}
    for call in (
        lambda: evalkit.score(*batch, **wrong),
        lambda: evalkit.update("kfac", lin, **wrong),
        lambda: Settings(**wrong),
    ):
        with pytest.raises(evalkit.EvalkitError, match="one of block, gradient, leave"):
            call()


def test_a_linearization_cannot_be_left_by_an_update() -> None:
    lin = evalkit.linearize(*CASES["convolution_group_norm"].make())
    with pytest.raises(evalkit.EvalkitError, match="before you linearize"):
        evalkit.update("kfac", lin, others="leave")


NORMED = """import torch
from torch import nn
import evalkit
from tests.support.small_studies import tensors

def model():
    return nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 3))

task = evalkit.Task(model=model, data=tensors, likelihood="categorical")
"""


def scored(folder: Path, others: str, *more: str) -> tuple[int, dict[str, Any]]:
    """Score a small task through the command; exit status and ``run.json``."""
    checkpoints, run = folder / "checkpoints", folder / "run"
    checkpoints.mkdir(exist_ok=True)
    model = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    initialise(model, Draw(0))
    torch.save(model.state_dict(), checkpoints / "step-1.pt")
    file = folder / "normed.py"
    file.write_text(NORMED, encoding="utf-8")
    options = ["--batches", "2", "--batch-size", "8", "--others", others, "--out", str(run)]
    status = main(["score", str(checkpoints), "--task", f"{file}:task", *options, *more])
    found = run / "run.json"
    return status, json.loads(found.read_text()) if found.exists() else {}


def test_others_are_a_part_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ("--methods", "sgd,kfac:labels=exact")
    assert scored(tmp_path, "leave", *methods)[0] == 0
    scores = (tmp_path / "run" / "scores.csv").read_text(encoding="utf-8")
    assert scored(tmp_path, "leave", *methods)[0] == 0
    assert scored(tmp_path, "block", *methods)[0] == 2
    assert "another others: leave instead of block" in capsys.readouterr().err
    assert (tmp_path / "run" / "scores.csv").read_text(encoding="utf-8") == scores
    assert scored(tmp_path, "blocks", *methods)[0] == 2
    assert "--others to be one of block, gradient, leave" in capsys.readouterr().err


def test_runs_with_other_others_cannot_be_compared(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("block", "leave")}
    for name, folder in folders.items():
        folder.mkdir()
        assert scored(folder, name, "--methods", "sgd,ief")[0] == 0
    baseline = tmp_path / "b.csv"
    check = ["check", str(folders["leave"] / "run"), "--baseline", str(baseline)]
    assert main([*check, "--update-baseline"]) == 0
    assert "# others: leave\n" in baseline.read_text(encoding="utf-8")
    assert main(check) == 0
    check[1] = str(folders["block"] / "run")
    assert main(check) == 1
    assert main([*check, "--update-baseline"]) == 0
    assert "others" not in baseline.read_text(encoding="utf-8")
    assert main(check) == 0
