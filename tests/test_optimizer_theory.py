"""What the paper proves of steps and of the paths that they follow (PAPER: theory)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from evalkit import optim
from tests.support.optim_reference import LOSSES, formed
from tests.support.table import Draw, initialise

SAMPLES = 8
STEP = 0.05


def perceptron(outputs: int, seed: int = 0) -> tuple[nn.Module, Tensor, Draw]:
    """A perceptron that can move the losses of all samples apart from each other."""
    draw = Draw(seed)
    model = nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, outputs)).double()
    initialise(model, draw)
    return model, draw.normal(SAMPLES, 5), draw


def losses(logits: Tensor, targets: Tensor, likelihood: str) -> Tensor:
    return torch.stack([LOSSES[likelihood](z, y) for z, y in zip(logits, targets, strict=True)])


def test_a_full_step_on_least_squares_is_the_minimum() -> None:
    draw = Draw(3)
    model, inputs, targets = nn.Linear(9, 1).double(), draw.normal(6, 9), draw.normal(6, 1)
    optimizer = optim.IEF(model.parameters(), lr=len(inputs), likelihood="gaussian", damping=0.0)
    optimizer.step(lambda: (model(inputs), targets))
    assert float((model(inputs).detach() - targets).abs().max()) < 1e-12


def targets_of(likelihood: str, draw: Draw) -> Tensor:
    if likelihood == "categorical":
        return draw.integers(4, SAMPLES)
    return draw.bits(SAMPLES, 4) if likelihood == "bernoulli" else draw.normal(SAMPLES, 4)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("kind", [optim.IEF, optim.EF, optim.FGN, optim.Polyak])
def test_an_infinitesimal_step_changes_losses_as_promised(
    kind: type[torch.optim.Optimizer], likelihood: str
) -> None:
    """Of the mean loss's terms l_n / N: by -lr |r_n|^2, -lr, -lr f_n, -lr l_n, all of them."""
    model, inputs, draw = perceptron(4)
    targets = targets_of(likelihood, draw)
    logits = model(inputs)
    terms = formed(logits, targets, list(model.parameters()), likelihood)
    inverse = torch.linalg.pinv(terms.curvature, rtol=1e-12, hermitian=True)
    rates = {
        optim.IEF: terms.residual.square().sum(1),
        optim.EF: torch.ones(SAMPLES, dtype=torch.float64),
        optim.FGN: torch.einsum("ne,nef,nf->n", terms.residual, inverse, terms.residual),
        optim.Polyak: terms.losses,
    }[kind]
    rate = 1e-6 / float(rates.max())
    before = losses(logits, targets, likelihood)
    optimizer = kind(model.parameters(), lr=rate, likelihood=likelihood, damping=0.0)
    optimizer.step(lambda: (model(inputs), targets))
    change = (losses(model(inputs), targets, likelihood) - before) / SAMPLES
    torch.testing.assert_close(change / -rate, rates, rtol=1e-3, atol=0.0)


def flow(
    model: nn.Module, inputs: Tensor, targets: Tensor, likelihood: str
) -> Iterator[tuple[float, Tensor]]:
    """Yield the time and the losses along the path d theta / dt = -d of iEF, by midpoints.

    A rate of N times the time is what the mean loss makes of the sum's d.
    """
    optimizer = optim.IEF(model.parameters(), lr=0.0, likelihood=likelihood, damping=0.0)

    def step(time: float) -> None:
        optimizer.param_groups[0]["lr"] = time * SAMPLES
        optimizer.step(lambda: (model(inputs), targets))

    for count in range(1, 25):
        start = [value.detach().clone() for value in model.parameters()]
        step(STEP / 2)
        middle = [value.detach().clone() for value in model.parameters()]
        step(STEP)
        with torch.no_grad():
            for value, old, between in zip(model.parameters(), start, middle, strict=True):
                value.copy_(old + (value - between))
            if count % 6 == 0:
                yield count * STEP, losses(model(inputs), targets, likelihood)


def test_losses_on_least_squares_fall_as_fast_as_promised() -> None:
    """l_n(t) <= exp(-2 m t) l_n(0) with m = 1, that of |z - y|^2 / 2."""
    model, inputs, draw = perceptron(2)
    targets = draw.normal(SAMPLES, 2)
    first = losses(model(inputs).detach(), targets, "gaussian")
    for time, found in flow(model, inputs, targets, "gaussian"):
        assert (found <= math.exp(-2 * time) * first * 1.01).all()


def test_probabilities_rise_as_fast_as_promised() -> None:
    """p_n(t) > 1 - 2 / (t + C0 + 1) with C0 = 1 / (1 - p) + log(p / (1 - p)) at the start.

    It says something from when t + C0 + 1 > 0, at once for p > 0.18.
    """
    model, inputs, draw = perceptron(3)
    targets = draw.integers(3, SAMPLES)
    p = model(inputs).detach().softmax(-1).gather(1, targets[:, None])[:, 0]
    start = 1 / (1 - p) + (p / (1 - p)).log()
    for time, found in flow(model, inputs, targets, "categorical"):
        late = time + start + 1 > 0
        assert late.any()
        assert ((-found).exp() > 1 - 2 / (time + start + 1))[late].all()
