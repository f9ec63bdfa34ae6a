"""Parts of a batch: which inputs are split, and that samples run again give what they gave."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import evalkit
from tests.support.cases import CASES
from tests.support.chosen_cases import SHARED_INPUTS, linearized
from tests.support.refusals import refusal
from tests.support.table import Custom, Draw, Net

N = 5
"""Samples, positions, features and rows of tables alike."""


def values(*shape: int) -> Tensor:
    return Draw(sum(shape)).normal(*shape)


def attended(net: Any, x: Tensor, table: Tensor) -> Tensor:
    return net.out((x @ table.T).softmax(-1) @ table)


MIXES: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "both of the samples": (lambda net, x, y: net.out(x * y), (values(N, N), values(N, N))),
    "positions": (
        lambda net, x, p: net.out((x + p).tanh()).mean(1),
        (values(N, N, N), values(N, N)),
    ),
    "positions of each sample": (
        lambda net, x, p: net.out((x + p[:, None]).tanh()).mean(1),
        (values(N, N, N), values(N, N)),
    ),
    "positions first": (
        lambda net, p, x: net.out((x + p).tanh()).mean(1),
        (values(N, N), values(N, N, N)),
    ),
    "scale of the features": (lambda net, x, s: net.out(x * s), (values(N, N), values(N))),
    "weight of each sample": (
        lambda net, x, s: net.out(x) * s[:, None],
        (values(N, N), values(N)),
    ),
    "table of prototypes": (attended, (values(N, N), values(N, N) + 1)),
    "looked-up rows": (
        lambda net, x, i, table: net.out(x + table[i]),
        (values(N, N), torch.tensor([0, 3, 4, 1, 2]), values(N, N)),
    ),
    "mask of the positions": (
        lambda net, x, keep, p: net.out((x + p).tanh() * keep[:, None]).mean(1),
        (values(N, N, N), torch.tensor([1.0, 1, 1, 0, 0]).double(), values(N, N)),
    ),
    "nothing but a long table": (
        lambda net, x, p: net.out(x) + 0 * p.sum(),
        (values(N, N), values(N, N)),
    ),
}


@functools.cache
def mixed(kind: str, keywords: bool, size: int | None = None) -> list[float]:
    """Gammas of SGD and iEF, in parts of a size."""
    rule, given = MIXES[kind]
    torch.manual_seed(0)
    model = Net(rule, out=nn.Linear(N, 3)).double()
    if keywords:
        model.forward = lambda **named: rule(model, *named.values())
    arguments = {str(k): value for k, value in enumerate(given)} if keywords else given
    settings = {"methods": ("sgd", "ief"), "micro_batch_size": size}
    return list(evalkit.score(model, arguments, torch.arange(N) % 3, **settings).gamma)


@pytest.mark.parametrize("kind", MIXES)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("keywords", [False, True])
def test_shared_inputs_as_long_as_the_batch(kind: str, size: int, keywords: bool) -> None:
    assert mixed(kind, keywords, size) == pytest.approx(mixed(kind, keywords), rel=1e-6)


def test_a_choice_between_two_readings_is_left_to_the_caller() -> None:
    def rule(net: Any, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        table, weights = (a, b) if len(a) > len(b) else (b, a)
        assert len(table) > len(weights)
        return net.out(x) * weights[:, None] * table.sum()

    model = Net(rule, out=nn.Linear(N, 3)).double()
    given = (values(N, N), values(N), values(N) + 1)
    said = refusal(lambda: evalkit.linearize(model, given, torch.arange(N) % 3, micro_batch_size=2))
    assert "axis of length 1 in front" in said
    assert "several choices" in said


@pytest.mark.parametrize("name", [n for n in sorted(SHARED_INPUTS) if n in CASES])
@pytest.mark.parametrize("size", [1, 2])
def test_parts_of_batches_whose_samples_belong_together(name: str, size: int) -> None:
    batch = CASES[name].make()
    expected = linearized(name)
    try:
        found = evalkit.linearize(*batch, micro_batch_size=size)
    except evalkit.EvalkitError as error:
        said = str(error)
    else:
        torch.testing.assert_close(found.logits, expected.logits)
        torch.testing.assert_close(found.gradient, expected.gradient)
        return
    assert "micro-batch size" in said


@pytest.mark.parametrize("size", [None, 2])
def test_samples_that_interact_are_warned_of_or_refused(size: int | None) -> None:
    model = Net(
        lambda net, x: net.out((h := net.a(x).tanh()) - h.mean(0)),
        a=nn.Linear(N, 4),
        out=nn.Linear(4, 3),
    ).double()
    batch = (model, values(N, N), torch.arange(N) % 3)
    if size is None:
        with pytest.warns(UserWarning, match="influence each other"):
            assert evalkit.linearize(*batch).gram.shape == (N, N)
    else:
        said = refusal(lambda: evalkit.linearize(*batch, micro_batch_size=size))
        assert "depend on which others" in said


def own_generator() -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda h: h + torch.randn(h.shape, generator=generator).to(h)


def counter(period: int) -> Callable[[Tensor], Tensor]:
    calls = iter(range(10**6))
    return lambda h: h * (1 + next(calls) % period)


def numpy_noise(size: float) -> Callable[[Tensor], Tensor]:
    draw = np.random.RandomState(0).randn
    return lambda h: h + size * torch.from_numpy(draw(*h.shape)).to(h)


def numpy_factor() -> Callable[[Tensor], Tensor]:
    draw = np.random.default_rng(0)
    return lambda h: h * float(draw.uniform())


VARYING: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "own generator": own_generator,
    "small noise": lambda: numpy_noise(1e-3),
    "numpy": lambda: numpy_noise(1.0),
    "numpy's generator": numpy_factor,
    "python": lambda: lambda h: h * random.random(),
    "counter": lambda: counter(10**6),
    "counter of two": lambda: counter(2),
}


@pytest.mark.parametrize("kind", VARYING)
@pytest.mark.parametrize("size", [None, 1, 2])
@pytest.mark.parametrize("samples", [2, 6])
def test_a_forward_that_changes_is_refused(kind: str, size: int | None, samples: int) -> None:
    block = Net(lambda net, x: net.culprit(net.a(x)), a=nn.Linear(4, 5))
    block.culprit = Custom(VARYING[kind]())
    model = Net(lambda net, x: net.out(net.block(x)), block=block, out=nn.Linear(5, 3)).float()
    x, y = values(samples, 4).float(), torch.arange(samples) % 3

    def score() -> None:
        evalkit.score(model, x, y, methods=("sgd", "ef"), micro_batch_size=size)

    said = refusal(score)
    assert "changes from call to call" in said
    assert "module 'block.culprit' (Custom)" in said


@pytest.mark.parametrize("kind", ["first", "only whole batches"])
def test_forwards_that_run_on_no_part_are_accepted_whole(kind: str) -> None:
    def rule(net: Any, x: Tensor) -> Tensor:
        return net.out(x.view(6, 4)) if kind == "only whole batches" else net.out(x - x[:1])

    model = Net(rule, out=nn.Linear(4, 3)).double()
    lin = evalkit.linearize(model, values(6, 4), torch.arange(6) % 3)
    assert lin.num_samples == 6
    said = refusal(
        lambda: evalkit.linearize(model, values(6, 4), torch.arange(6) % 3, micro_batch_size=2)
    )
    assert "micro-batch size" in said


def test_gradients_that_are_switched_off_by_the_caller() -> None:
    batch = CASES["forces_of_an_energy"].make()
    with torch.no_grad():
        lin = evalkit.linearize(*batch)
        split = evalkit.linearize(*batch, micro_batch_size=2)
    torch.testing.assert_close(split.gradient, lin.gradient)
