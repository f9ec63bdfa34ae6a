"""The method ``optimizer``: the step that an optimizer takes next, from its state on the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit import optim
from evalkit.errors import EvalkitError
from evalkit.updates import compute

MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "muon": lambda p: torch.optim.Muon([one for one in p if one.dim() == 2], lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
}


def model_and_batch(dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)
    return model, torch.randn(12, 5, dtype=dtype), torch.arange(12) % 3


def trained(
    dtype: torch.dtype, make: Callable[..., torch.optim.Optimizer], steps: int = 4
) -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    model, inputs, targets = model_and_batch(dtype)
    optimizer = make(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model, optimizer, inputs, targets


def torchs_own(model: nn.Module, optimizer: torch.optim.Optimizer, gradient: Tensor) -> Tensor:
    """Return theta - theta' of torch's own step on copies."""
    model, optimizer = copy.deepcopy((model, optimizer))
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    sizes = [p.numel() for p in model.parameters()]
    for parameter, part in zip(model.parameters(), gradient.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter).clone()
    optimizer.step()
    return before - nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("name", MAKERS)
def test_the_step_is_that_of_torch_to_the_last_bit(name: str) -> None:
    model, optimizer, inputs, targets = trained(torch.float64, MAKERS[name])
    lin = evalkit.linearize(model, inputs, targets)
    found = evalkit.update("optimizer", lin, optimizer=optimizer)
    assert torch.equal(found, torchs_own(model, optimizer, lin.gradient / 12))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_in_float32_the_step_has_the_digits_that_a_difference_of_float32_loses(name: str) -> None:
    model, optimizer, inputs, targets = trained(torch.float32, MAKERS[name])
    for group in optimizer.param_groups:
        group["lr"] = 1e-7
    lin = evalkit.linearize(model, inputs, targets)
    found = compute("optimizer", lin, optimizer=optimizer).direction(lin)
    double, twin = copy.deepcopy((model, optimizer))
    double.double()
    state = twin.state_dict()
    twin.load_state_dict(state)  # which casts the state to the parameters' precision
    exact = torchs_own(double, twin, lin.gradient.double() / 12)
    plain = torchs_own(model, optimizer, lin.gradient / 12).double()
    ulp = torch.finfo(torch.float32).eps * nn.utils.parameters_to_vector(model.parameters()).abs()
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=0)
    assert bool(((plain - exact).abs() <= ulp).all())
    assert (plain - exact).norm() > 1e3 * (found.double() - exact).norm()


def test_decay_and_momentum_are_told_apart() -> None:
    model, optimizer, inputs, targets = trained(torch.float64, MAKERS["adamw"])
    lin = evalkit.linearize(model, inputs, targets)
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    whole, without, alone = (
        evalkit.update("optimizer", lin, optimizer=optimizer, **settings)
        for settings in ({}, {"decay": False}, {"decay": False, "momentum": False})
    )
    assert torch.allclose(whole - without, 1e-4 * theta, rtol=1e-6, atol=1e-14)
    state = optimizer.state_dict()["state"]
    second = torch.cat([state[n]["exp_avg_sq"].flatten() for n in state])
    mean = lin.gradient / 12
    second = 0.999 * second + 0.001 * mean**2
    expected = 1e-3 * mean / ((second / (1 - 0.999**5)).sqrt() + 1e-8)
    assert torch.allclose(alone, expected, rtol=1e-9, atol=0)


def test_the_callers_optimizer_and_model_are_left_to_the_bit() -> None:
    model, optimizer, inputs, targets = trained(torch.float32, MAKERS["adamw"])
    called: list[Any] = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    gradients = [p.grad for p in model.parameters()]
    random = torch.get_rng_state()
    table = evalkit.score(model, inputs, targets, methods=("sgd", "optimizer"), optimizer=optimizer)
    assert (table.error < 0.1).all()
    after = model.state_dict(), optimizer.state_dict()
    assert str(before) == str(after)
    assert all(
        torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values(), strict=True)
    )
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert not called
    assert scheduler.last_epoch == 0


def test_a_parameter_of_no_group_does_not_move_and_a_frozen_one_counts_for_nothing() -> None:
    model, inputs, targets = model_and_batch(torch.float64)
    optimizer = torch.optim.SGD(list(model.parameters())[:3], lr=1.0)
    next(model.parameters()).requires_grad_(False)
    lin = evalkit.linearize(model, inputs, targets)
    found = lin.by_name(evalkit.update("optimizer", lin, optimizer=optimizer))
    assert "0.weight" not in found
    assert not found["2.bias"].any()
    expected = lin.by_name(lin.gradient / 12)["2.weight"]
    assert torch.allclose(found["2.weight"], expected, rtol=1e-12, atol=1e-15)


def test_the_gradient_is_clipped_as_torch_clips_it() -> None:
    model, inputs, targets = model_and_batch(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    lin = evalkit.linearize(model, inputs, targets)
    found = evalkit.update("optimizer:clip=0.01", lin, optimizer=optimizer)
    assert float(found.norm()) == pytest.approx(0.01, rel=1e-3)


def test_what_cannot_be_stepped_is_refused_in_a_sentence() -> None:
    model, optimizer, inputs, targets = trained(torch.float32, MAKERS["adamw"])
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    lbfgs = torch.optim.LBFGS(model.parameters())
    own = optim.IEF(model.parameters(), lr=1.0)
    for given, sentence in (
        (None, "expected the optimizer of the training for method 'optimizer', found none"),
        (other, "that is not the model's"),
        (lbfgs, "LBFGS, whose step runs the forward"),
        (own, "score the method 'ief' itself"),
        ("adamw", "expected a torch.optim.Optimizer as `optimizer`, found str"),
    ):
        with pytest.raises(EvalkitError, match=sentence):
            evalkit.score(model, inputs, targets, methods="optimizer", optimizer=given)
    optimizer.state[next(model.parameters())]["exp_avg"] = torch.zeros(2)
    with pytest.raises(EvalkitError, match="to take a step from its state"):
        evalkit.score(model, inputs, targets, methods="optimizer", optimizer=optimizer)
