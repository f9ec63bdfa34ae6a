"""Values that meet the batch along its sample axis, and what only looks like them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import evalkit
from tests.support.table import Draw, Net

METHODS = ("sgd", "ef", "ief", "sf")


def test_an_axis_as_long_as_the_batch_is_no_sample_axis() -> None:
    """In float32 the row sums alone do not tell: EF was 16 % off."""
    draw = Draw(20)

    def rule(net: Any, x: Tensor) -> Tensor:
        weight = net.w * (1 + 0.03 * net.h)  # (8, 8) features, not samples
        return net.out(torch.tanh(F.linear(net.first(x), weight)))

    torch.manual_seed(20)
    model = Net(
        rule,
        first=nn.Linear(8, 8),
        w=nn.Parameter(torch.randn(8, 8) * 0.3),
        h=nn.Parameter(torch.zeros(8)),
        out=nn.Linear(8, 3),
    )
    x, y = draw.normal(8, 8).float(), draw.integers(3, 8)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x)[:6], y[:6]).backward()
        optimizer.step()
    recording = evalkit.linearize(model, x, y)._batches[0].recording
    assert "h" in recording.broadcast_candidates
    assert recording.broadcast_parameters == {}
    found = evalkit.score(model, x, y, methods=METHODS).gamma
    exact = evalkit.score(model.double(), x.double(), y, methods=METHODS).gamma
    assert found.to_numpy() == pytest.approx(exact.to_numpy(), rel=1e-3)


class _Opaque(torch.autograd.Function):
    """Twice its input, with a backward that function transforms cannot run."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient * (gradient.abs().max().item() >= 0)


def _scaled(net: Any, x: Tensor) -> Tensor:
    return net.out(torch.tanh(net.body(x) * net.h))


def _scaled_twice(net: Any, x: Tensor) -> Tensor:
    return net.out(torch.tanh(net.body(x) * (2 * net.h)))


def _recomputed(net: Any, x: Tensor) -> Tensor:
    return net.out(checkpoint(lambda a: torch.tanh(a * net.h), net.body(x), use_reentrant=False))


def _opaque(net: Any, x: Tensor) -> Tensor:
    return net.out(torch.tanh(net.body(x) * _Opaque.apply(net.h)))


@pytest.mark.parametrize("rule", [_recomputed, _opaque])
def test_models_that_hide_their_backward(rule: Callable[..., Tensor]) -> None:
    draw = Draw(3)
    x, y = draw.normal(6, 5), draw.integers(3, 6)

    def made(rule: Callable[..., Tensor]) -> nn.Module:
        torch.manual_seed(0)
        h = nn.Parameter(torch.randn(4).double())
        body, out = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
        return Net(rule, body=body, h=h, out=out)

    plain = _scaled if rule is _recomputed else _scaled_twice
    gram = evalkit.linearize(made(rule), x, y).gram
    assert torch.allclose(gram, evalkit.linearize(made(plain), x, y).gram, rtol=1e-10, atol=1e-12)


def test_a_number_keeps_the_precision_of_its_model() -> None:
    draw = Draw(4)
    model = Net(
        lambda net, x: net.out(x * net.k),
        k=nn.Parameter(torch.tensor(1.5, dtype=torch.float64)),
        out=nn.Linear(5, 3),
    )
    lin = evalkit.linearize(model, draw.normal(6, 5).float(), draw.integers(3, 6))
    assert lin.logits.dtype == torch.float32


FLOAT32_BY_THEMSELVES: dict[str, Callable[[Tensor], Tensor]] = {
    "number": lambda x: x.float() * 2,
    "dtype": lambda x: x.to(torch.float32).pow(2).mean(-1, keepdim=True) * x,
    "constant": lambda x: (x.float() @ torch.eye(5)).to(x.dtype),
    "linear": lambda x: F.linear(x.to(torch.float32), torch.eye(5)),
    "softmax": lambda x: x.softmax(-1, dtype=torch.float32).to(x.dtype),
    "positions": lambda x: x + (torch.arange(5)[:, None].float() @ torch.ones(1, 1)).view(1, 5),
}


@pytest.mark.parametrize("name", FLOAT32_BY_THEMSELVES)
def test_float64_is_float64_throughout(name: str) -> None:
    rule = FLOAT32_BY_THEMSELVES[name]
    draw = Draw(5)
    inputs, targets = draw.normal(6, 5), draw.integers(3, 6)
    torch.manual_seed(0)
    model = Net(
        lambda net, x: net.out(rule(net.body(x))), body=nn.Linear(5, 5), out=nn.Linear(5, 3)
    )
    lin = evalkit.linearize(model, inputs.float(), targets, dtype="float64")
    assert lin.logits.dtype == torch.float64
    direction, step = draw.normal(lin.num_params), 1e-6
    parameters = list(model.double().parameters())
    base = nn.utils.parameters_to_vector(parameters).detach()
    sides = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(base + sign * step * direction, parameters)
        sides.append(evalkit.linearize(model, inputs.float().double(), targets).logits)
    slope = (sides[0] - sides[1]) / (2 * step)
    assert torch.allclose(lin.jvp(direction), slope, rtol=1e-7, atol=1e-7)


def test_tables_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "import torch, evalkit; torch.manual_seed(0);"
        "m = torch.nn.Sequential(*[torch.nn.Linear(9, 9) for _ in range(6)]);"
        "k = evalkit.linearize(m, torch.randn(7, 9), torch.randint(0, 9, (7,))).gram;"
        "print(k.numpy().tobytes().hex())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
