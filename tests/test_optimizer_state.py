"""The optimisers are torch's: groups, schedulers, state, hooks, copies, and what they refuse."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LinearLR

from evalkit import optim
from evalkit.errors import EvalkitError
from tests.support.table import Draw, initialise

KINDS = [optim.IEF, optim.EF, optim.SF, optim.FGN, optim.Polyak]
SETTINGS: dict[str, Any] = {"momentum": 0.9, "normalise": True, "weight_decay": 0.1}
Closure = Callable[[], tuple[Tensor, Tensor]]


class Training:
    """A small model with batches that follow each other."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        draw = Draw(seed)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
        initialise(self.model, draw)
        self.inputs, self.targets = draw.normal(40, 4).to(dtype), draw.integers(3, 40)

    def closure(self, step: int) -> Closure:
        here = slice(8 * (step % 5), 8 * (step % 5) + 8)
        return lambda: (self.model(self.inputs[here]), self.targets[here])

    def run(self, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.step(self.closure(step))  # type: ignore[arg-type]

    @property
    def values(self) -> list[Tensor]:
        return [value.detach().clone() for value in self.model.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def damped(params: Any, **settings: Any) -> torch.optim.Optimizer:
    return optim.Preconditioned(params, "kfac:labels=improved", damping=1e-2, **settings)


@pytest.mark.parametrize("kind", [*KINDS, damped])
def test_a_state_that_is_loaded_goes_on_bit_for_bit(kind: Any) -> None:
    whole, first = Training(), Training()
    whole.run(kind(whole.model.parameters(), lr=0.1, **SETTINGS), range(7))
    optimizer = kind(first.model.parameters(), lr=0.1, **SETTINGS)
    first.run(optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": first.model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second = Training(seed=1)
    second.inputs, second.targets = first.inputs, first.targets
    second.model.load_state_dict(loaded["model"])
    # Settings are the state's: torch's own optimisers take them from there as well.
    resumed = kind(second.model.parameters(), lr=0.5)
    resumed.load_state_dict(loaded["optimizer"])
    second.run(resumed, range(3, 7))
    assert same(second.values, whole.values)


@pytest.mark.parametrize("kind", [optim.IEF, optim.SF, damped])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_alike(copied: Callable[[Any], Any], kind: Any) -> None:
    training = Training()
    optimizer = kind(training.model.parameters(), lr=0.1, **SETTINGS)
    training.run(optimizer, range(2))
    twin = Training()
    twin.model, other = copied((training.model, optimizer))
    training.run(optimizer, range(2, 5))
    twin.run(other, range(2, 5))
    assert same(twin.values, training.values)
    assert other.param_groups[0]["params"][0] is next(twin.model.parameters())


def test_schedulers_set_the_rate() -> None:
    training, twin = Training(), Training()
    optimizer = optim.EF(training.model.parameters(), lr=1.0, normalise=True)
    scheduler = LinearLR(optimizer, start_factor=1.0, end_factor=0.5, total_iters=4)
    other = optim.EF(twin.model.parameters(), lr=1.0, normalise=True)
    for step, rate in enumerate((1.0, 0.875, 0.75, 0.625, 0.5)):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        before = torch.cat([value.flatten() for value in training.values])
        training.run(optimizer, range(step, step + 1))
        after = torch.cat([value.flatten() for value in training.values])
        assert float((after - before).norm()) == pytest.approx(rate)
        scheduler.step()
        other.param_groups[0]["lr"] = rate
        twin.run(other, range(step, step + 1))
    for left, right in zip(twin.values, training.values, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_a_rate_of_zero_changes_nothing() -> None:
    training = Training()
    optimizer = optim.IEF(training.model.parameters(), lr=3.0, weight_decay=0.1)
    LambdaLR(optimizer, lambda step: 0.0)
    before = training.values
    training.run(optimizer, range(2))
    assert same(before, training.values)


def test_a_group_that_is_added_is_of_the_same_system() -> None:
    together, added = Training(), Training()
    whole = optim.IEF(
        [
            {"params": together.model[0].parameters()},
            {"params": together.model[2].parameters(), "lr": 0.5},
        ],
        lr=2.0,
    )
    later = optim.IEF(added.model[0].parameters(), lr=2.0)
    later.add_param_group({"params": list(added.model[2].parameters()), "lr": 0.5})
    together.run(whole, range(3))
    added.run(later, range(3))
    assert same(together.values, added.values)


def test_hooks_run_around_a_step() -> None:
    training, seen = Training(), []
    optimizer = optim.IEF(training.model.parameters(), lr=1.0)
    optimizer.register_step_pre_hook(lambda *_: seen.append(training.values))
    optimizer.register_step_post_hook(lambda *_: seen.append(training.values))
    before = training.values
    training.run(optimizer, range(1))
    assert same(seen[0], before)
    assert same(seen[1], training.values)
    assert not same(seen[0], seen[1])


def test_gradients_of_the_caller_are_left_alone() -> None:
    training = Training()
    optimizer = optim.IEF(training.model.parameters(), lr=1.0)
    training.model[0].weight.grad = torch.ones_like(training.model[0].weight)
    training.run(optimizer, range(1))
    assert training.model[0].weight.grad is None or bool((training.model[0].weight.grad == 1).all())
    optimizer.zero_grad()
    assert training.model[0].weight.grad is None


def test_the_closure_is_called_once_with_gradients_on() -> None:
    training, calls = Training(), []
    optimizer = optim.IEF(training.model.parameters(), lr=1.0)

    def closure() -> tuple[Tensor, Tensor]:
        calls.append(torch.is_grad_enabled())
        return training.closure(0)()

    logits, targets = (value.detach() for value in training.closure(0)())
    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(float(nn.functional.cross_entropy(logits, targets)))


def scalar(training: Training) -> Closure:
    inputs, targets = training.inputs[:8], training.targets[:8]
    return lambda: nn.functional.cross_entropy(training.model(inputs), targets)


def not_finite(training: Training) -> Closure:
    return lambda: (training.model(training.inputs[:8] * torch.nan), training.targets[:8])


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_in_place_of_logits_is_refused(kind: Any) -> None:
    training = Training()
    optimizer = kind(training.model.parameters(), lr=1.0)
    with pytest.raises(EvalkitError, match="logits"):
        optimizer.step(scalar(training))


def test_parameters_of_another_model_are_refused() -> None:
    optimizer = optim.IEF(Training(seed=1).model.parameters(), lr=1.0)
    with pytest.raises(EvalkitError, match="depend on some of these parameters"):
        optimizer.step(Training().closure(0))


def test_a_step_without_a_forward_is_refused() -> None:
    training = Training()
    optimizer = optim.IEF(training.model.parameters(), lr=1.0)
    with pytest.raises(EvalkitError, match="expected a closure"):
        optimizer.step()
    with torch.inference_mode(), pytest.raises(EvalkitError, match="inference_mode"):
        optimizer.step(training.closure(0))


@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum"])
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), "1"])
def test_settings_are_numbers(name: str, value: Any) -> None:
    settings = {"lr": 1.0, name: value}
    with pytest.raises(EvalkitError, match=f"`{name}`"):
        optim.IEF(Training().model.parameters(), **settings)


@pytest.mark.parametrize("setting", [{"normalise": "yes"}, {"normalise": 1}, {"on_failure": "no"}])
def test_settings_that_are_neither_of_two_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(EvalkitError, match=f"`{next(iter(setting))}`"):
        optim.EF(Training().model.parameters(), lr=1.0, **setting)


def test_a_loss_that_is_not_finite_raises_and_changes_nothing() -> None:
    training = Training()
    optimizer = optim.IEF(training.model.parameters(), lr=1.0, **SETTINGS)
    training.run(optimizer, range(1))
    before, state = training.values, copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(EvalkitError, match="finite"):
        optimizer.step(not_finite(training))
    assert same(training.values, before)
    assert str(optimizer.state_dict()["state"]) == str(state)


def test_a_loss_that_is_not_finite_is_skipped_and_counted() -> None:
    training, twin = Training(), Training()
    skipping = optim.IEF(training.model.parameters(), lr=0.1, on_failure="skip", **SETTINGS)
    plain = optim.IEF(twin.model.parameters(), lr=0.1, **SETTINGS)
    training.run(skipping, range(2))
    twin.run(plain, range(2))
    before = training.values
    skipping.step(not_finite(training))
    assert same(training.values, before)
    assert skipping.skipped == 1
    training.run(skipping, range(2, 4))
    twin.run(plain, range(2, 4))
    assert skipping.skipped == 1
    assert same(training.values, twin.values)


def test_settings_and_states_of_another_kind_are_refused_in_a_sentence() -> None:
    training = Training()
    parameters = training.model.parameters()
    with pytest.raises(EvalkitError, match="`lr` to be a finite number of at least 0, found None"):
        optim.IEF(parameters, lr=None)  # type: ignore[arg-type]
    adam = torch.optim.AdamW(training.model.parameters())
    own = optim.IEF(training.model.parameters(), lr=1.0)
    with pytest.raises(EvalkitError, match="expected the state of IEF, found one without damping"):
        own.load_state_dict(adam.state_dict())
    training.run(own, range(1))
