"""What is told and refused before the first score of methods by layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.cli import main
from evalkit.updates import foreseen
from evalkit.updates.foreseen import check_needs
from tests.support.cases import CASES, Draw
from tests.support.folders import BUNDLED
from tests.support.small_studies import tensors
from tests.support.table import initialise

METHODS = ("kfac", "kfac:labels=exact", "ekfac", "diagonal", "kpsvd", "shampoo", "eva", "block")


def held(found: Any, seen: dict[int, int]) -> int:
    """Bytes of all tensors that are shared between dampings, views counted once."""
    if isinstance(found, Tensor):
        seen[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    elif isinstance(found, dict | list | tuple):
        for one in found.values() if isinstance(found, dict) else found:
            held(one, seen)
    elif hasattr(found, "__dict__") and not isinstance(found, evalkit.Linearization | nn.Module):
        held({key: value for key, value in vars(found).items() if key != "lin"}, seen)
    return sum(seen.values())


def convolutions() -> tuple[nn.Module, Tensor, Tensor]:
    draw = Draw(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.GroupNorm(2, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, groups=2),
        nn.Flatten(),
        nn.Linear(512, 5),
    )
    initialise(model, draw)
    return model, draw.normal(20, 3, 8, 8).float(), draw.integers(5, 20)


def wide() -> tuple[nn.Module, Tensor, Tensor]:
    draw = Draw(0)
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 5))
    initialise(model, draw)
    return model, draw.normal(30, 300).float(), draw.integers(5, 30)


@pytest.mark.parametrize("make", [convolutions, wide])
def test_no_more_is_held_than_was_foreseen(
    make: Callable[[], tuple[nn.Module, Tensor, Tensor]],
) -> None:
    batch = make()
    for method in METHODS:
        lin = evalkit.linearize(*batch)
        told = check_needs(lin, [method], "block")
        evalkit.update(method, lin, damping=1e-2)
        most = held(lin._shared, {})  # small things included, as the cotangents themselves
        assert most <= 1.1 * told, method
        assert told <= 8 * most or method == "block", method  # whose rows are formed and let go


def test_what_methods_share_is_counted_once() -> None:
    lin = evalkit.linearize(*wide())
    one = check_needs(lin, ["kfac"], "block")
    assert check_needs(lin, ["kfac", "kfac:style=pi", "ekfac"], "block") < 2 * one
    assert check_needs(lin, ["sgd", "ief"], "block") == 0


def test_factors_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreseen, "free_memory", lambda: 1 << 20)
    sentence = r"matrices of kfac, .* MiB of memory, found"
    with monkeypatch.context() as patch:
        patch.setattr("evalkit.scoring.rows.compute", lambda *_: pytest.fail("was started"))
        with pytest.raises(evalkit.EvalkitError, match=sentence):
            evalkit.score(*wide(), methods=("sgd", "kfac"), damping=1e-3)
    assert len(evalkit.score(*wide(), methods=("sgd", "ief"), damping=1e-3)) == 2


def test_vocabularies_count() -> None:
    """The factor of so many outputs is of their square, unless there are few positions."""
    model = nn.Sequential(nn.Embedding(5000, 4), nn.Linear(4, 5000))
    few, many = (
        evalkit.linearize(model, *(torch.randint(5000, (4, t)) for _ in range(2)))
        for t in (10, 600)
    )
    assert check_needs(few, ["kfac"], "gradient") < 0.2 * 8 * 5000**2
    assert check_needs(many, ["kfac"], "gradient") > 2 * 8 * 5000**2


# --- the command -----------------------------------------------------------------------------

TASK = """import torch
from torch import nn
import evalkit
from tests.support.small_studies import tensors

def model():
    return nn.Sequential({layers})

task = evalkit.Task(model=model, data=tensors, likelihood="{likelihood}")
"""
NORMED = "nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 3)"


def score(folder: Path, *more: str, layers: str = NORMED) -> int:
    """Score a model of a file through the command."""
    checkpoints, file = folder / "checkpoints", folder / "task.py"
    checkpoints.mkdir(exist_ok=True)
    model = eval(f"nn.Sequential({layers})")
    initialise(model, Draw(0))
    torch.save(model.state_dict(), checkpoints / "step-1.pt")
    file.write_text(TASK.format(layers=layers, likelihood="categorical"), encoding="utf-8")
    options = ["--batches", "2", "--batch-size", "8", "--out", str(folder / "run")]
    return main(["score", str(checkpoints), "--task", f"{file}:task", *options, *more])


@pytest.mark.parametrize(
    ("others", "phrase"),
    [
        ("block", "each has a block of its own"),
        ("gradient", "take the plain gradient there"),
        ("leave", "left out of every row"),
    ],
)
def test_parameters_without_factors_are_named(
    others: str, phrase: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(tmp_path, "--others", others, "--methods", "sgd,ekfac") == 0
    note = capsys.readouterr().err
    assert "2 parameters without factors (1.weight, 1.bias)" in note
    assert phrase in note
    found = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert found["without_factors"] == ["1.weight", "1.bias"]
    assert found["settings"]["others"] == others
    assert found["trainable_parameters"] == (59 - 8 if others == "leave" else 59)


def test_a_run_that_is_extended_by_a_structure_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(tmp_path, "--methods", "sgd") == 0
    assert "without factors" not in capsys.readouterr().err
    assert score(tmp_path, "--methods", "sgd,kfac") == 0
    found = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert found["without_factors"] == ["1.weight", "1.bias"]


def test_much_memory_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("evalkit.study.notes.LARGE", 1000)
    assert score(tmp_path, "--methods", "sgd,ekfac") == 0
    assert "matrices of methods by layers take up to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("methods", "damping", "sentence"),
    [
        ("kfac:labels=improve", "1e-3", "did you mean 'improved'?"),
        ("kfca", "1e-3", "did you mean 'kfac'"),
        ("kfac:labels=exact,improved", "1e-3", "write each value of a setting as kfac:labels="),
        ("kfac:labels=exact:labels=improved", "1e-3", "setting 'labels' once"),
        ("kfac:labels=exact|improved", "1e-3", "one of sampled, exact"),
        ("kfac:others=leave", "1e-3", "give --others leave beside the methods"),
        ("kfac:seed=1", "1e-3", "give --seed 1 beside the methods"),
        ("ekfac:style=pi", "1e-3", "unknown setting 'style'"),
        ("kpsvd:style=plain", "1e-3", "one of tikhonov, pi"),
        ("kfac:labels=floor:labels_per_sample=2", "1e-3", "labels=sampled alone"),
        ("sgd,eva", "1e-3,0", "a damping above 0 for method 'eva'"),
    ],
)
def test_bad_requests_end_before_the_first_score(
    methods: str,
    damping: str,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    options = ["--methods", methods, "--damping", damping, "--out", str(run)]
    assert main(["score", str(BUNDLED), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("evalkit: error: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert not run.exists()


@pytest.mark.parametrize(
    ("layers", "methods", "sentence"),
    [
        ("nn.Linear(8, 301)", "sgd,kfac:labels=exact", "301; use labels=sampled"),
        ("nn.LayerNorm(8)", "sgd,kfac", "a layer whose weight is a matrix"),
    ],
)
def test_what_the_model_forbids_is_told_before_the_first_row(
    layers: str,
    methods: str,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evalkit.scoring.rows.compute", lambda *_: pytest.fail("was started"))
    assert score(tmp_path, "--methods", methods, layers=layers) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("evalkit: error: checkpoint 'step-1', batch 0: ")
    assert sentence in error
    assert not (tmp_path / "run").exists()
    model, (inputs, targets) = eval(f"nn.Sequential({layers})"), tensors()
    with pytest.raises(evalkit.EvalkitError, match=sentence):
        evalkit.score(model, inputs, targets, methods=methods.split(","))


def test_a_diagonal_without_damping_is_a_pseudo_inverse() -> None:
    """Singular by construction where an input is always zero: g is zero there, and d too."""
    model, inputs, targets = wide()
    inputs[:, 0] = 0.0
    lin = evalkit.linearize(model, inputs, targets)
    d = lin.by_name(evalkit.update("diagonal:labels=improved", lin, damping=0.0))
    assert not d["0.weight"][:, 0].any()
    squares = lin.sample_gradients(lin.weighted_logit_gradients(1 / lin.logit_gradient_norms)[None])
    s, g = squares.square().sum(0), lin.gradient.double()
    wanted = torch.where(s > 0, g / s.where(s > 0, 1.0), 0.0)
    big = (s > 1e-9 * s.max()) if len(s) else s
    found = evalkit.update("diagonal:labels=improved", lin, damping=0.0).double()
    assert torch.allclose(found[big], wanted[big], rtol=1e-3)


def test_case_with_unused_parameters_names_none() -> None:
    lin = evalkit.linearize(*CASES["unused_parameters"].make())
    assert check_needs(lin, ["kfac"], "block") > 0


def test_a_second_level_needs_several_blocks_before_anything_is_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    monkeypatch.setattr("evalkit.scoring.rows.compute", lambda *_: pytest.fail("was started"))
    with pytest.raises(evalkit.EvalkitError, match=r"several layers .* found one; use kfac"):
        evalkit.score(*batch, methods=("sgd", "two-level-kfac"), damping=1e-3)
