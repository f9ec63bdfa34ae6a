"""A likelihood of one's own, the page's Poisson regression, against dense algebra in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit import likelihoods
from tests.support.documents import document, python_files
from tests.support.table import Draw


@pytest.fixture
def poisson(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likelihood of the page is known while the test runs."""
    registry = likelihoods._REGISTRY
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    exec(python_files(document("guides/likelihood.md"))["poisson_likelihood.py"], {})


def batch() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, Draw(0).normal(5, 3), torch.tensor([[0, 2], [1, 0], [3, 1], [0, 0], [7, 2]])


def test_products_and_scores_of_ones_own(poisson: None) -> None:
    model, x, y = batch()
    parameters = dict(model.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters.values()])

    def logits(vector: Tensor) -> Tensor:
        sizes = [p.numel() for p in parameters.values()]
        parts = zip(parameters.items(), vector.split(sizes), strict=True)
        named = {name: part.view_as(p) for (name, p), part in parts}
        return torch.func.functional_call(model, named, (x,)).flatten()

    jacobian = torch.autograd.functional.jacobian(logits, flat)
    rates = logits(flat).exp()
    fisher = jacobian.T @ (rates[:, None] * jacobian)
    gradient = jacobian.T @ (rates - y.flatten())
    lin = evalkit.linearize(model, x, y, "poisson")
    torch.testing.assert_close(lin.gradient, gradient)
    torch.testing.assert_close(lin.fvp(gradient), fisher @ gradient)
    floor = ((rates - y.flatten()) ** 2 / rates).sum() ** -0.5
    assert lin.gamma_floor == pytest.approx(float(floor))
    scores = evalkit.score(model, x, y, "poisson", ("sgd", "ngd"), damping=1e-6)
    for method, d in (
        ("sgd", gradient),
        ("ngd", torch.linalg.solve(fisher + 1e-6 * torch.eye(len(flat)).double(), gradient)),
    ):
        gamma = float((d @ fisher @ d).sqrt() / (d @ gradient))
        found = scores.set_index("method").gamma[method]
        assert found == pytest.approx(gamma, rel=1e-6)


def test_tasks_and_optimisers_know_it(poisson: None) -> None:
    model, x, y = batch()
    assert evalkit.Task(model=lambda: model, data=lambda: (x, y), likelihood="poisson")
    optimizer = evalkit.optim.IEF(model.parameters(), lr=1.0, likelihood="poisson", damping=1e-3)
    losses = [float(optimizer.step(lambda: (model(x), y))) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(evalkit.EvalkitError, match="found 'gaussian', which is registered"):
        likelihoods.register(likelihoods.Gaussian())
