"""Scores on a device beside those of the CPU, each within what both tables say of their errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import evalkit
from tests.support import dense
from tests.support.cases import CASES
from tests.support.chosen_cases import SOME
from tests.support.other_device import NAME
from tests.support.table import Batch, Draw, initialise

METHODS = ("sgd", "ef", "ief", "ief-tikhonov", "fgn", "fgn-tikhonov", "polyak")
METHODS = (*METHODS, "best-weights", "sf")
"""What is scored everywhere beside NGD; methods by layers have tests of their own."""
SOLVERS = ("ngd:solver=cg", "ngd:solver=direct", "ngd:solver=sketch")

_NOT_IN_PYTHON = ("recurrence", "recomputed", "forward_mode", "tied_by_attribute")
"""In names of cases that a device written in Python cannot compute: it lacks their kernels or
threads, and ``nn.Module.to`` makes two parameters of one that two modules share there."""


def case(name: str, device: str) -> Batch:
    """Return a case in float64, or skip the test where the device cannot compute it."""
    if device == NAME and any(part in name for part in _NOT_IN_PYTHON):
        pytest.skip("a device that is written in Python cannot compute it")
    return CASES[name].make()


def scores(batch: Batch, device: str, **settings: object) -> pd.DataFrame:
    """Return the table of a batch on a device."""
    return evalkit.score(*batch.on(device), **settings)


def within_their_errors(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Gammas differ by no more than both tables say that they may, and rounding."""
    assert list(found["method"]) == list(expected["method"])
    allowed = found["error"] + expected["error"] + 1e-9
    relative = (found["gamma"] / expected["gamma"] - 1).abs().fillna(0.0)
    same = (found["gamma"] == expected["gamma"]) | (allowed == np.inf) | (relative <= allowed)
    assert same.all(), pd.DataFrame({"off": relative, "allowed": allowed, "gamma": found["gamma"]})


def same_scores(batch: Batch, device: str, methods: Sequence[str], damping: float) -> None:
    """Hold scores in float64 on a device to the CPU's, and refusals to its sentences."""
    settings = {"methods": methods, "damping": damping}
    try:
        expected = scores(batch, "cpu", **settings)
    except evalkit.EvalkitError as error:  # a sketch wants layers with a rule
        with pytest.raises(evalkit.EvalkitError, match=str(error)[:20]):
            scores(batch, device, **settings)
        return
    within_their_errors(scores(batch, device, **settings), expected)


def float32_scores(name: str, device: str, methods: Sequence[str], damping: float) -> None:
    """Hold scores in float32 on a device to those of the same parameters in float64 on the CPU."""
    exact, rounded = case(name, device), CASES[name].make(torch.float32)
    settings = {"methods": methods, "damping": damping}
    found = scores(CASES[name].make(torch.float32), device, **settings)
    same = Batch(
        rounded.model.double(),
        dense.to_dtype(rounded.inputs, torch.float64),
        dense.to_dtype(rounded.targets, torch.float64),
        exact.likelihood,
    )
    within_their_errors(found, scores(same, "cpu", **settings))


def convolutions() -> Batch:
    """Wide enough for tensor cores, in float32."""
    draw = Draw(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2),
        nn.GroupNorm(8, 64),
        nn.Flatten(),
        nn.Linear(64 * 49, 128),
        nn.Tanh(),
        nn.Linear(128, 10),
    )
    initialise(model, draw)
    images, labels = draw.normal(32, 3, 16, 16).float(), draw.integers(10, 32)
    return Batch(model.float(), images, labels, "categorical")


def near_in_norm(found: Tensor, expected: Tensor, most: float = 1e-5) -> None:
    """The relative error of a whole is at most so much; any device."""
    error = (found.cpu().double() - expected).norm() / expected.norm()
    assert float(error) < most


every_case = pytest.mark.parametrize("name", CASES)
some_cases = pytest.mark.parametrize("name", SOME)
