"""Steps of optimisers on a device, and the method ``optimizer``, are those of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit import optim
from tests.cuda.comparison import case, within_their_errors
from tests.support.dense import assert_near, call
from tests.support.table import Batch

CASES = (
    "mlp_categorical",
    "mlp_gaussian",
    "missing_labels_bernoulli",
    "convolution_group_norm",
    "token_labels",
    "low_rank_adapter",
    "embedding_tied_by_function",
)
Maker = Callable[[Batch], torch.optim.Optimizer]


def _made(kind: Any, rate: float, *first: str, damping: float = 1e-3, **settings: Any) -> Maker:
    return lambda batch: kind(
        batch.model.parameters(), *first, lr=rate, damping=damping, likelihood=batch.likelihood,
        **settings,
    )  # fmt: skip


OPTIMIZERS: dict[str, Maker] = {
    "IEF": _made(optim.IEF, 0.1),
    "IEF, momentum": _made(optim.IEF, 0.1, momentum=0.9, weight_decay=1e-2),
    "EF": _made(optim.EF, 1e-3),
    "FGN": _made(optim.FGN, 0.1),
    "Polyak": _made(optim.Polyak, 0.1),
    "SF": _made(optim.SF, 1e-4, seed=5),
    "Preconditioned ngd": _made(optim.Preconditioned, 1e-2, "ngd:solver=direct"),
    "Preconditioned kfac": _made(optim.Preconditioned, 1e-2, "kfac:labels=improved", damping=1e-2),
}


def parameters(model: nn.Module) -> Tensor:
    """The parameters, on the CPU."""
    return torch.cat([value.detach().cpu().flatten() for value in model.parameters()])


def stepped(batch: Batch, make: Maker, steps: int = 3) -> Tensor:
    """The parameters after some steps."""
    optimizer = make(batch)
    for _ in range(steps):
        optimizer.step(lambda: (call(batch.model, batch.inputs), batch.targets))  # type: ignore[arg-type, return-value]
    return parameters(batch.model)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps(optimizer: str, name: str, device: str) -> None:
    batch, make = case(name, device), OPTIMIZERS[optimizer]
    found, expected = (stepped(batch.on(place), make) for place in (device, "cpu"))
    assert_near(found, expected, 1e-8)
    assert not torch.equal(expected, parameters(batch.model))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["ief", "ef", "fgn", "polyak"])
def test_the_gradient_of_the_weighted_loss(method: str, name: str, device: str) -> None:
    found = []
    for place in (device, "cpu"):
        batch = case(name, device).on(place)
        weighted = optim.WeightedLoss(batch.model, method, 1e-6, batch.likelihood)
        weighted(call(batch.model, batch.inputs), batch.targets).backward()
        grads = [p.grad for p in batch.model.parameters() if p.grad is not None]
        found.append(torch.cat([one.cpu().flatten() for one in grads]))
    assert_near(found[0], found[1], 1e-8)


OWN: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
    "AdamW, fused where torch has it": partial(torch.optim.AdamW, lr=1e-3, fused=True),
    "SGD, momentum": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
    "Adafactor": partial(torch.optim.Adafactor, lr=1e-2),
}


def trained(batch: Batch, make: Callable[..., torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """An optimizer with moments, after some steps of the mean loss."""
    optimizer = make(batch.model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(call(batch.model, batch.inputs), batch.targets).backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", ["mlp_categorical", "convolution_group_norm", "low_rank_adapter"])
@pytest.mark.parametrize("optimizer", OWN)
def test_the_step_of_the_trainings_own_optimizer(optimizer: str, name: str, device: str) -> None:
    if "fused" in optimizer and device == "other":
        pytest.skip("torch has no fused steps for devices that are written in Python")
    tables, moves = [], []
    for place in (device, "cpu"):
        batch = case(name, device).on(place)
        own = trained(batch, OWN[optimizer])
        tables.append(evalkit.score(*batch, methods=("sgd", "optimizer"), optimizer=own))
        lin = evalkit.linearize(*batch)
        moves.append(evalkit.update("optimizer", lin, optimizer=own).cpu())
    assert_near(moves[0], moves[1], 1e-8)
    within_their_errors(tables[0], tables[1])
