"""Other targets for per-sample gradients, FGN and Polyak, and the best weights there are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import evalkit
from evalkit.updates import best_weights
from tests.benchmarks.small_problems import Problem
from tests.support import dense
from tests.support.agreement import well_conditioned
from tests.support.cases import CASES
from tests.support.chosen_cases import A_THIRD, linearized, reference
from tests.support.dense import assert_near
from tests.support.table import Batch, Draw, initialise

ONE_OUTPUT = ["least_squares", "least_squares_more_samples_than_parameters", "scalar_logit"]
WEIGHTED = ("ef", "ief", "fgn", "polyak", "ief-tikhonov", "fgn-tikhonov")


def two_classes() -> Batch:
    draw = Draw(5)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    initialise(model, draw)
    return Batch(model, draw.normal(7, 4), draw.integers(2, 7), "categorical")


BATCHES = {"two_classes": two_classes, **{name: CASES[name].make for name in ONE_OUTPUT}}


@pytest.mark.parametrize("name", BATCHES)
def test_fgn_is_the_natural_gradient_for_one_output_per_sample(name: str) -> None:
    batch = BATCHES[name]()
    lin, expected = evalkit.linearize(*batch), dense.dense(*batch)
    for damping in (1e-6, 1e-2, 10.0):
        assert_near(
            evalkit.update("fgn-tikhonov", lin, damping), dense.ngd(expected, damping), 1e-7
        )
    if well_conditioned(expected):
        assert_near(evalkit.update("fgn", lin, 0.0), dense.ngd(expected, 0.0), 1e-7)
        row = evalkit.score(*batch, methods="fgn", damping=0.0)
        assert row["efficiency"][0] == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", A_THIRD)
def test_no_weights_are_better_than_the_best(name: str) -> None:
    batch = CASES[name].make()
    table = evalkit.score(*batch, methods=("best-weights", *WEIGHTED), damping=1e-9)
    best, *others = table["gamma"]
    floor = linearized(name).gamma_floor
    assert best >= floor * (1 - 1e-9)
    for gamma, error in zip(others, table["error"][1:], strict=True):
        assert best <= gamma * (1 + error + table["error"][0] + 1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_largest_multiple_of_a_gradient_below_the_fisher_matrix(name: str) -> None:
    """G_n G_n^T / f_n <= J_n^T S_n J_n, and F(floor) <= F with it."""
    expected = reference(name)
    r, rows = expected.residual, expected.sample_gradients
    inverse = torch.linalg.pinv(expected.curvature, rtol=1e-12, hermitian=True)
    f = torch.einsum("ne,nef,nf->n", r, inverse, r)
    assert_near(linearized(name).floor_terms, f, 1e-8)
    assert_near(expected.floor_terms, f, 1e-8)
    below = rows.T @ torch.diag(1 / f) @ rows
    least = torch.linalg.eigvalsh(expected.fisher - below)[0]
    assert float(least) >= -1e-9 * float(expected.fisher.diagonal().sum())


def test_an_undamped_polyak_step_brings_every_loss_to_zero_to_first_order() -> None:
    batch = CASES["mlp_categorical"].make()
    lin, expected = evalkit.linearize(*batch), dense.dense(*batch)
    moved = expected.sample_gradients @ evalkit.update("polyak", lin, 0.0)
    torch.testing.assert_close(moved, expected.losses, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["mlp_categorical", "token_labels", "samples_that_interact"])
def test_products_of_single_samples_agree_with_those_of_the_kernel(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for seconds in (0.0, 1.0):
        monkeypatch.setattr(best_weights, "kernel_work", lambda *_, **__: None)
        rates = Rates(seconds)
        monkeypatch.setattr(best_weights, "TYPICAL", rates)
        found.append(best_weights._sample_products(evalkit.linearize(*CASES[name].make())))
    assert_near(found[0], found[1], 1e-9)
    expected = reference(name)
    rows = torch.stack([expected.jvp(row).flatten() for row in expected.sample_gradients])
    assert_near(found[0], rows, 1e-9)


class Rates:
    """Rates by which the kernel takes so many seconds, and a product half of one."""

    def __init__(self, kernel: float) -> None:
        self.kernel = kernel

    def seconds(self, work: object) -> float:
        return self.kernel if work is None else 0.01


def test_best_weights_say_when_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_weights, "MOST_NUMBERS", 10)
    with pytest.raises(evalkit.EvalkitError, match="best-weights"):
        evalkit.score(*CASES["mlp_categorical"].make(), methods="best-weights")


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize("damping", [1e-6, 1e-3])
def test_the_best_weights_are_the_best_where_few_digits_are_left(
    damping: float, dtype: str | None
) -> None:
    """G F G^T has the fourth powers of the singular values of J: few digits for 97 parameters."""
    model, x, y = Problem("diabetes", False, width=8, activation=nn.Tanh, epochs=10).trained()
    methods = ("best-weights", *WEIGHTED)
    table = evalkit.score(model, x, y, "gaussian", methods, damping=damping, dtype=dtype)
    least = (table["gamma"] * (1 - table["error"].clip(upper=1)))[0]
    assert (table["gamma"][1:] * (1 + table["error"][1:]) >= least).all()
    assert dtype or table["error"][0] < 1e-6


PROBLEMS = [
    Problem("iris", scaled=False, width=6, activation=nn.Tanh, epochs=30),
    Problem("diabetes", scaled=False, width=8, activation=nn.Tanh, epochs=10),
    Problem("wine", scaled=True, width=4, activation=nn.ReLU, epochs=5),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.data)
@pytest.mark.parametrize("damping", [0.0, 1e-12, 1e-6, 1e-3])
def test_rows_in_float32_are_within_their_errors(problem: Problem, damping: float) -> None:
    model, x, y = problem.trained()
    methods = ("fgn", "fgn-tikhonov", "polyak", "best-weights")
    rows = [
        evalkit.score(model, x, y, problem.likelihood, methods, damping=damping, dtype=dtype)
        for dtype in ("float32", None, "float64")
    ]
    for found in rows[:2]:
        allowed = found["error"] + rows[2]["error"]
        off = (found["gamma"] / rows[2]["gamma"] - 1).abs()
        assert (off <= allowed).all(), (off.tolist(), allowed.tolist())
