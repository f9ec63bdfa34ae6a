"""Scores at the defaults are within their stated error of exact arithmetic."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.doubts import MARKED
from tests.benchmarks.accuracy import DAMPINGS, FAR, METHODS, drawn
from tests.benchmarks.small_problems import Problem
from tests.support import dense, exact, exact_gammas

PROBLEMS = [
    Problem("iris", scaled=False, width=6, activation=nn.Tanh, epochs=30),
    Problem("wine", scaled=True, width=4, activation=nn.ReLU, epochs=5),
    Problem("breast_cancer", scaled=False, width=5, activation=nn.GELU, epochs=20),
    Problem("diabetes", scaled=True, width=16, activation=nn.Tanh, epochs=10),
    Problem("diabetes", scaled=False, width=2, activation=nn.Tanh, epochs=10),
]
SAMPLES = 12


class Prepared:
    """A problem with few samples and the exact numbers of it."""

    def __init__(self, problem: Problem) -> None:
        self.likelihood = problem.likelihood
        self.model, x, y = problem.trained()
        self.x, self.y = x[:SAMPLES], y[:SAMPLES]
        self.drawn = drawn(self.model, self.x, self.y, self.likelihood)
        self.batch = cache(self._batch)
        self.exact = cache(self._exact)

    def _batch(self, bits: int) -> exact.Batch:
        with exact.bits(bits):
            return exact.batch(self.model, self.x, self.y, self.likelihood, self.drawn)

    def _exact(self, method: str, damping: float) -> float:
        return exact_gammas.exact_gamma(self.batch, method, damping)


def title(problem: Problem) -> str:
    return f"{problem.data}{'' if problem.scaled else ' as it is'}, {problem.width}"


@pytest.fixture(scope="module", params=PROBLEMS, ids=title)
def prepared(request: pytest.FixtureRequest) -> Prepared:
    return Prepared(request.param)


def test_exact_numbers_agree_with_the_dense_reference(prepared: Prepared) -> None:
    reference = dense.dense(prepared.model, prepared.x, prepared.y, prepared.likelihood)
    damping = 1e-2 * float(reference.gram.diagonal().max())
    for method in ("ef", "ief", "ief_tikhonov", "ngd"):
        expected = reference.gamma(getattr(dense, method)(reference, damping))
        found = prepared.exact(method.replace("_", "-"), damping)
        assert found == pytest.approx(expected, rel=1e-8)
    assert prepared.exact("sgd", 0.0) == pytest.approx(reference.gamma(reference.gradient))


def test_exact_sampled_fisher_agrees_with_the_dense_reference(prepared: Prepared) -> None:
    reference = dense.dense(prepared.model, prepared.x, prepared.y, prepared.likelihood)
    rows = [[float(a) for a in row] for row in prepared.batch(exact_gammas.FEWEST_BITS).sampled]
    sampled = reference.residual.new_tensor([rows])
    damping = 1e-2 * float(reference.gram.diagonal().max())
    expected = reference.gamma(dense.sf(reference, sampled, damping))
    assert prepared.exact("sf", damping) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_rows_are_within_their_stated_error(prepared: Prepared, dtype: str | None) -> None:
    rows = evalkit.score(
        prepared.model,
        prepared.x,
        prepared.y,
        prepared.likelihood,
        METHODS,
        DAMPINGS,
        dtype=dtype,
    )
    rows = rows.set_index(["method", "damping"])
    for key in itertools.product(METHODS, DAMPINGS):
        row = rows.loc[key]
        off = abs(row["gamma"] / prepared.exact(*key) - 1)
        assert off <= row["error"], key
        assert off <= FAR or row["error"] > MARKED, key


class OnlyFloat32(nn.Linear):
    """Knows one precision, as layers with a kernel of their own do."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("only float32")
        return super().forward(x)


def test_rows_stay_where_the_model_knows_no_float64() -> None:
    problem = PROBLEMS[3]
    model, x, y = problem.trained()
    only = OnlyFloat32(model[2].in_features, model[2].out_features)
    only.load_state_dict(model[2].state_dict())
    batch = (nn.Sequential(model[0], model[1], only), x[:160], y[:160], problem.likelihood)
    with pytest.warns(UserWarning, match="stay in float32.*only float32"):
        rows = evalkit.score(*batch, methods=("sgd", "ief"))
    assert rows["dtype"].tolist() == ["float32"] * 2
    assert rows["error"][1] > MARKED
