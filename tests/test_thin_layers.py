"""Directions of layers with few inputs, as products of thin matrices that are never multiplied."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.curvature.eigen import Sums, decomposed
from evalkit.curvature.noise import Moments
from evalkit.layers.low_rank import LowRank
from evalkit.linearization import ByParameter, Linearization
from evalkit.updates import VectorUpdate, compute
from tests.support.dense import assert_near
from tests.support.table import Draw, initialise


class Layers(nn.Module):
    """Linear layers with and without a bias, and a normalisation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 30), nn.Linear(30, 24, bias=False)
        self.norm, self.last = nn.LayerNorm(24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(torch.tanh(self.second(torch.tanh(self.first(x))))))


def batch(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    draw, model = Draw(0), Layers().to(dtype)
    initialise(model, draw)
    return model, draw.normal(5, 40).to(dtype), draw.integers(3, 5)


def parts(lin: Linearization, text: str, damping: float) -> ByParameter:
    update = compute(text, lin, damping)
    assert isinstance(update, VectorUpdate)
    assert isinstance(update.vector, ByParameter)
    return update.vector


@pytest.mark.parametrize("text", ["kfac", "kfac:labels=improved", "ekfac", "kpsvd:labels=exact"])
def test_products_take_factors_as_they_are(text: str) -> None:
    lin = evalkit.linearize(*batch())
    found = parts(lin, text, 1e-3)
    thin = {name for name, one in found.parts.items() if isinstance(one, LowRank)}
    assert "first.weight" in thin
    assert_near(lin.jvp(found), lin.jvp(found.vector()), 1e-12)
    assert found.norm == pytest.approx(float(found.vector().norm()), rel=1e-12)
    assert ByParameter(found.form, found.dtype).norm == pytest.approx(found.norm, rel=1e-12)
    sizes = [one.formed().numel() for one in found.parts.values() if isinstance(one, LowRank)]
    assert sum(sizes) > lin.num_params / 3


def test_few_vectors_that_all_count_have_nothing_beside_them_however_they_move() -> None:
    vectors = Draw(0).normal(1, 4, 40).double()
    moments = Moments()
    moments.add(vectors.square().sum(2), 1e-3)

    def beside(vectors: Tensor) -> float:
        sums = Sums()
        sums.add(vectors)
        return float(decomposed(sums, moments, 1.0, 1e-3).variances[0, -1, -1])

    assert beside(vectors) == 0.0
    assert beside(torch.cat([vectors, vectors[:, :1]], 1)) > 0.0  # moved apart, they span more


@pytest.mark.parametrize("text", ["kfac", "kfac:labels=improved"])
def test_float32_scores_near_zero_damping_need_no_float64(text: str) -> None:
    draw = Draw(0)
    model = nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 1)).float()
    initialise(model, draw)
    given = model, draw.normal(4, 300).float(), draw.normal(4, 1).float(), "gaussian"
    row, exact = (
        evalkit.score(*given, methods=text, damping=1e-12, dtype=dtype).iloc[0]
        for dtype in ("float32", "float64")
    )
    assert abs(row["gamma"] / exact["gamma"] - 1) <= row["error"] < 1e-3


def test_numbers_that_are_not_finite_are_found_by_parameter() -> None:
    one = torch.ones(2, 1)
    for bad in (torch.tensor([1.0, torch.nan]), LowRank(one * torch.inf, one)):
        assert not ByParameter(lambda bad=bad: {"w": bad}, torch.float32).finite
    assert ByParameter(lambda: {"w": LowRank(one, one)}, torch.float32).finite
