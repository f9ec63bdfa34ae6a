"""Digits of trained models in float32, and slopes that methods know by algebra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import evalkit
from evalkit.checkpoints import load_into, open_trajectory
from evalkit.doubts import MARKED
from evalkit.study.batches import draw_batch
from evalkit.tasks import load_task
from evalkit.updates import compute
from tests.support import dense
from tests.support.chosen_cases import A_THIRD, linearized
from tests.support.dense import assert_near
from tests.support.table import Batch, Draw, initialise

METHODS = ("sgd", "ef", "ief", "sf", "sf:labels_per_sample=3")
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints" / "digits-mlp"


@pytest.mark.parametrize("damping", [0.0, 1e-12, 1e-3])
@pytest.mark.parametrize("seed", [0, 1])
def test_trained_models_keep_their_digits_in_float32(damping: float, seed: int) -> None:
    """Imbalance is about 1e6 here: r^T J d alone has an error of a percent for EF."""
    task = load_task("digits-mlp")
    model = task.build_model(0).eval()
    load_into(model, open_trajectory(CHECKPOINTS).checkpoints[-1])
    samples = task.training_samples()
    inputs, targets = samples.take(draw_batch(len(samples), 160, seed, 2))
    tables = [
        evalkit.score(model, inputs, targets, methods=METHODS, damping=damping, dtype=dtype)
        for dtype in ("float32", "float64")
    ]
    for column in ("gamma", "fisher_norm", "slope", "norm"):
        np.testing.assert_allclose(*(table[column] for table in tables), rtol=1e-4)


def confident(wrong: int) -> Batch:
    """A model that is nearly sure of 8 - ``wrong`` of 8 labels, in float64."""
    draw = Draw(3)
    model = nn.Sequential(nn.Linear(5, 30), nn.Tanh(), nn.Linear(30, 4)).double()
    initialise(model, draw)
    with torch.no_grad():
        model[2].weight *= 12
    inputs = draw.normal(8, 5)
    targets = model(inputs).argmax(1)
    targets[:wrong] = (targets[:wrong] + 1) % 4
    return Batch(model, inputs, targets, "categorical")


@pytest.mark.parametrize("damping", [1e-12, 1e-6, 1e-2])
@pytest.mark.parametrize("wrong", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_direct_solve_with_labels_that_are_confidently_wrong(
    damping: float, wrong: int, dtype: str
) -> None:
    """Their part of x is so long that rounding leaves residuals longer than g; gamma is right."""
    batch = confident(wrong)
    exact = evalkit.linearize(*batch)
    best = dense.ngd(dense.dense(*batch), damping)
    lin = evalkit.linearize(*batch, dtype=dtype)
    found = evalkit.natural_gradient(lin, damping, solver="direct")
    assert found.solver == "direct"

    def depth(x: torch.Tensor) -> float:
        """Of the quadratic model at the best multiple of x."""
        indicator = evalkit.gamma(exact, x.double()), float(exact.gradient @ x.double())
        curvature = (indicator[0] * indicator[1]) ** 2 + damping * float(x.double().square().sum())
        return indicator[1] ** 2 / curvature

    lost = 0.3 if (dtype, damping) == ("float32", 1e-12) else 1e-3
    assert depth(found.solution) >= (1 - lost) * depth(best)


@pytest.mark.parametrize(("damping", "seed"), [(0.0, 0), (1e-12, 1), (1e-8, 2)])
def test_scores_of_the_natural_gradient_are_those_of_its_update(damping: float, seed: int) -> None:
    """Half of the samples are nearly copies: eigenvalues of J J^T below rounding say nothing."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 5))
    inputs, targets = torch.randn(40, 12), torch.randint(5, (40,))
    inputs[20:] = inputs[:20] + 1e-3 * torch.randn(20, 12)
    exact = evalkit.linearize(model, inputs, targets, dtype="float64")
    found = {}
    for name in ("sgd", "ngd:solver=cg", "ngd:solver=direct"):
        request = {"methods": name, "damping": damping}
        table = evalkit.score(model, inputs, targets, dtype="float32", **request)
        lin = evalkit.linearize(model, inputs, targets)
        found[name] = evalkit.gamma(exact, compute(name, lin, damping).direction(lin).double())
        assert table["gamma"][0] == pytest.approx(found[name], rel=1e-3)
        # Left to itself, a score goes on in float64 where float32 falls short.
        free = evalkit.score(model, inputs, targets, **request)
        assert free["gamma"][0] <= (1 + 1e-3) * found[name]
        assert free["dtype"][0] == "float64" or table["error"][0] <= MARKED
    assert max(found["ngd:solver=cg"], found["ngd:solver=direct"]) < 0.8 * found["sgd"]
    plain = evalkit.natural_gradient(evalkit.linearize(model, inputs, targets), damping)
    assert plain.gammas[-1] == pytest.approx(evalkit.gamma(exact, plain.solution.double()), 1e-3)
    assert plain.relative_residual < 0.1


@pytest.mark.parametrize("damping", [1e-5, 1e-3, 10.0])
@pytest.mark.parametrize("wrong", [0, 1, 8])
@pytest.mark.parametrize("draws", [1, 3])
def test_sampled_fisher_with_labels_of_the_data(damping: float, wrong: int, draws: int) -> None:
    lin = evalkit.linearize(*confident(wrong))
    r = lin.sampled_logit_gradients(0, draws)
    rows = torch.stack([_gradient(lin, draw, n) for draw in r for n in range(lin.num_samples)])
    fisher = rows.T @ rows / draws + damping * torch.eye(lin.num_params)
    expected = damping * torch.linalg.solve(fisher, lin.gradient)
    name = f"sf:labels_per_sample={draws}"
    found = evalkit.update(name, lin, damping)
    assert_near(found, expected, 1e-6)


def _gradient(lin: evalkit.Linearization, r: torch.Tensor, n: int) -> torch.Tensor:
    alone = torch.zeros_like(r)
    alone[n] = r[n]
    return lin.vjp(alone)


@pytest.mark.parametrize("name", A_THIRD)
def test_slopes_by_algebra_are_slopes(name: str) -> None:
    lin = linearized(name)
    for method in METHODS[1:]:
        for damping in (0.0, 1e-3):
            update = compute(method, lin, damping)
            assert update.slope is not None
            d = update.direction(lin)
            expected = float(d @ lin.gradient)
            rounding = 1e-12 * float(lin.gradient.square().sum())  # where d itself is nothing else
            assert update.slope == pytest.approx(expected, rel=1e-6, abs=rounding)
