"""Structured methods as they are called: what they share, the errors they state, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import evalkit
from evalkit.scoring import check_request
from tests.support.cases import CASES, Draw
from tests.support.structured import LABELS, Oracle
from tests.support.structures import DAMPED, STRUCTURES


def test_dampings_share_their_decompositions(monkeypatch: pytest.MonkeyPatch) -> None:
    count = {"eigh": 0, "svd": 0, "grad": 0}

    def count_calls(module: Any, name: str) -> None:
        call = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            count[name] += 1
            return call(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    count_calls(torch.linalg, "eigh")
    count_calls(torch.linalg, "svd")
    count_calls(torch.autograd, "grad")
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    evalkit.update("kfac:labels=improved", lin, damping=1e-1)
    first = dict(count)
    for damping in (1e-2, 1e-3):
        evalkit.update("kfac:labels=improved", lin, damping=damping)
        evalkit.update("kfac:labels=improved:style=pi", lin, damping=damping)
        evalkit.update("ekfac:labels=improved", lin, damping=damping)
    assert count == first
    evalkit.update("kfac:labels=empirical", lin, damping=1e-1)
    again = count["eigh"] + count["svd"] - first["eigh"] - first["svd"]
    assert again == 3  # the output gradients of three layers: inputs are those of before


@pytest.mark.filterwarnings("ignore:.*outside of the range")
@pytest.mark.parametrize("name", ["mlp_categorical", "duplicate_samples", "conv1d_groups"])
def test_float32_scores_are_within_their_errors(name: str) -> None:
    batch = CASES[name].make(torch.float32)
    oracle, seen = Oracle(batch), []
    for turn, structure in enumerate(STRUCTURES):
        labels = LABELS[(turn + len(name)) % 5]
        if structure == "eva" and labels == "exact":
            labels = "empirical"
        dampings = [0.0, 1e-12, 1e-6, 1e-3][structure in DAMPED :]
        text = f"{structure}:labels={labels}"
        for row in evalkit.score(*batch, text, dampings, dtype="float32").itertuples():
            wanted = oracle.reference.gamma(oracle.direction(structure, row.damping, labels))
            assert abs(row.gamma / wanted - 1) <= row.error, (text, row.damping)
            seen.append(row.error)
    assert sum(error < 1e-3 for error in seen) > len(seen) / 2


def test_scores_that_float32_hides_are_found_in_float64() -> None:
    batch = CASES["mlp_categorical"].make(torch.float32)
    text = "kfac:labels=improved"
    rough = evalkit.score(*batch, methods=text, damping=1e-12, dtype="float32").iloc[0]
    row = evalkit.score(*batch, methods=text, damping=1e-12).iloc[0]
    assert rough["error"] > 1e-3
    assert row["dtype"] == "float64"
    assert row["error"] < 1e-6


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kfac:labels=improve", "one of sampled, exact, empirical, improved, floor"),
        ("kfacs", "kfac"),
        ("kfac:labels=exact:labels_per_sample=2", "labels_per_sample with labels=sampled alone"),
        ("kfac:labels_per_sample=0", "labels_per_sample of at least 1"),
        ("block:norm=position", "norm=position with labels=improved alone"),
        ("kfac:style=tikhonow", "one of tikhonov, pi, plain"),
        ("kpsvd:style=plain", "one of tikhonov, pi"),
        ("shampoo:exponent=2", "1, 0.5 or 0.25"),
        ("shampoo:exponent=0.5:style=pi", "style=pi with exponent=1 alone"),
        ("eva:labels=exact", "labels with a mean"),
        ("lanczos:floor=0", "floor above 0 in method 'lanczos', found 0"),
        ("kfac-corrected:floor=-1", "floor above 0"),
        ("deflation:style=tikhonov", "style"),
        ("deflation:sharing=reduce", "sharing"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_computed(text: str, sentence: str) -> None:
    with pytest.raises(evalkit.EvalkitError, match=sentence):
        check_request([text], 1e-3)


def test_what_needs_damping_or_layers_or_few_outputs_says_so() -> None:
    for name in DAMPED:
        with pytest.raises(evalkit.EvalkitError, match=f"damping above 0 for method '{name}'"):
            check_request(["sgd", name], [1e-3, 0.0])
    batch = CASES["mlp_categorical"].make()
    with pytest.raises(evalkit.EvalkitError, match="damping above 0 for method 'eva'"):
        evalkit.update("eva", evalkit.linearize(*batch), damping=0.0)
    bare = evalkit.linearize(*CASES["linear_weight_used_beside_its_module"].make())
    with pytest.raises(evalkit.EvalkitError, match="a layer whose weight is a matrix"):
        evalkit.update("kfac", bare)
    wide = nn.Linear(2, 400).double()
    lin = evalkit.linearize(wide, Draw(0).normal(3, 2), torch.arange(3))
    with pytest.raises(evalkit.EvalkitError, match="400; use labels=sampled"):
        evalkit.update("kfac:labels=exact", lin)


def test_what_a_pseudo_inverse_loses_is_said() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    with pytest.warns(UserWarning, match="of the gradient lies outside of the range"):
        evalkit.update("block", lin, damping=0.0)
