"""J v and J^T u belong to one Jacobian, that of ``loss.backward()``; else one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import evalkit
from tests.support import dense
from tests.support.refusals import refusal
from tests.support.table import Custom, Draw, Net

TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])
OPERATORS = torch.library.Library("evalkit_tests", "DEF")
OPERATORS.define("squared(Tensor x) -> Tensor")
OPERATORS.impl("squared", lambda x: torch.from_numpy(x.detach().numpy() ** 2), "CPU")


class Square(Function):
    """h^2, with a right backward that torch can differentiate."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return h * h

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * u


class OnceDifferentiable(Square):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * u


class WithoutGraph(Square):
    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Tensor:
        with torch.no_grad():
            return 2 * ctx.saved_tensors[0] * u


class Kernel(Square):
    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Tensor:
        h = ctx.saved_tensors[0].detach().numpy()
        return torch.from_numpy(2 * h * u.detach().numpy())


class Reentrant(Function):
    """A layer whose backward runs a backward, as checkpointing of other libraries does."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, h: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(h)
        return layer(h)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[None, Tensor]:
        h = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.layer(h).backward(u)
        return None, h.grad


def hooked(hook: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def rule(h: Tensor) -> Tensor:
        h = h * h
        if h.requires_grad:
            h.register_hook(hook)
        return h

    return rule


def residual(rule: Callable[[Tensor], Tensor], scale: float = 1.0) -> nn.Module:
    """A model with ``rule`` beside a path that torch can differentiate, as block.culprit."""
    torch.manual_seed(0)
    block = Net(
        lambda net, x: net.b((h := net.a(x)) + scale * net.culprit(h)),
        a=nn.Linear(4, 5),
        culprit=Custom(rule),
        b=nn.Linear(5, 3),
    )
    return Net(lambda net, x: net.block(x), block=block).double()


def inputs() -> Tensor:
    return Draw(0).normal(6, 4)


OPAQUE = {
    "once differentiable": OnceDifferentiable.apply,
    "without a graph": WithoutGraph.apply,
    "kernel": Kernel.apply,
    "hook without a graph": hooked(lambda u: u.detach() * 2),
    "hook that clips": hooked(lambda u: u.clamp(-0.1, 0.1)),
}


@pytest.mark.parametrize("kind", OPAQUE)
@pytest.mark.parametrize("size", [None, 2])
def test_a_backward_that_loses_a_part_of_j_v_is_refused(kind: str, size: int | None) -> None:
    model = residual(OPAQUE[kind])
    for name in ("sgd", "ngd"):
        said = refusal(
            lambda name=name: evalkit.score(
                model, inputs(), TARGETS, methods=name, micro_batch_size=size
            )
        )
        assert "differentiated twice" in said
        assert "module 'block.culprit' (Custom)" in said


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_small_part_counts_too(dtype: str) -> None:
    model = residual(OnceDifferentiable.apply, scale=0.02)
    said = refusal(lambda: evalkit.score(model, inputs(), TARGETS, methods="sgd", dtype=dtype))
    assert "OnceDifferentiable" in said


def test_a_forward_of_the_model_itself_is_named_by_its_class() -> None:
    model = Net(lambda net, x: net.b((h := net.a(x)) + Kernel.apply(h)), a=nn.Linear(4, 5))
    model.b = nn.Linear(5, 3)
    said = refusal(lambda: evalkit.score(model.double(), inputs(), TARGETS, methods="sgd"))
    assert "the model itself (Net) by Kernel" in said


@pytest.mark.parametrize("product", ["jvp", "fvp", "kernel_product", "gamma"])
def test_every_product_is_tested(product: str) -> None:
    model = residual(OnceDifferentiable.apply)
    lin = evalkit.linearize(model, inputs(), TARGETS)
    head = torch.cat([torch.zeros(25), torch.ones(18)]).double()  # below it all is right
    plain = evalkit.linearize(residual(Square.apply), inputs(), TARGETS)
    torch.testing.assert_close(lin.jvp(head), plain.jvp(head))
    torch.testing.assert_close(lin.gradient, plain.gradient)
    v = plain.logit_gradients if product == "kernel_product" else plain.gradient
    action = evalkit.gamma if product == "gamma" else getattr(evalkit.Linearization, product)
    assert "differentiable" in refusal(lambda: action(lin, v))


HEALTHY = {
    "function": Square.apply,
    "hook that scales": hooked(lambda u: 2 * u),
    "full backward hook": nn.Tanh(),
    "checkpoint": lambda h: checkpoint(torch.tanh, h, use_reentrant=False),
}


@pytest.mark.parametrize("kind", HEALTHY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_differentiable_backward_is_accepted(kind: str, dtype: str, scale: float) -> None:
    model = residual(HEALTHY[kind]).to(getattr(torch, dtype))
    if kind == "full backward hook":
        model.block.culprit.register_full_backward_hook(lambda module, given, taken: None)
    targets = scale * Draw(1).normal(6, 3)
    for samples in (1, 6):
        x = (scale * inputs()[:samples]).to(model.block.a.weight.dtype)
        lin = evalkit.linearize(model, x, targets[:samples], "gaussian")
        lin.kernel_product(lin.logit_gradients)
        lin.jvp(scale * torch.ones(lin.num_params))


class Momentum(nn.Module):
    """A layer beside a copy of it without gradients, whose parameters still ask for them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.copy = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.copy(x)
        return Square.apply(self.layer(x)) - target


def test_parameters_that_are_used_without_gradients_are_accepted() -> None:
    lin = evalkit.linearize(Momentum().double(), inputs(), TARGETS)
    assert lin.gradient[-15:].abs().max() == 0


def checkpointed(layer: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(layer, x, use_reentrant=True)


class Part(nn.Module):
    """A layer that is called in another way than by itself."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.call, self.layer = call, nn.Linear(5, 5)

    def forward(self, h: Tensor) -> Tensor:
        return self.call(self.layer, h)


def with_part(call: Callable[[nn.Module, Tensor], Tensor], trained: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Part(call), nn.Tanh(), nn.Linear(5, 3)).double()
    model[0].requires_grad_(trained)
    return model


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("size", [None, 3])
def test_reentrant_checkpointing_is_refused(trained: bool, size: int | None) -> None:
    model, x = with_part(checkpointed, trained), inputs().requires_grad_()
    said = refusal(lambda: evalkit.linearize(model, x, TARGETS, micro_batch_size=size))
    assert "use_reentrant=False" in said
    assert "module '1' (Part)" in said
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("trained", [True, False])
def test_a_backward_within_a_backward_is_refused(trained: bool) -> None:
    model, x = with_part(Reentrant.apply, trained), inputs().requires_grad_()
    assert "'1.layer.weight'" in refusal(lambda: evalkit.linearize(model, x, TARGETS))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("trained", [True, False])
def test_checkpointing_that_is_not_reentrant_is_scored_right(trained: bool) -> None:
    part = with_part(lambda layer, x: checkpoint(layer, x, use_reentrant=False), trained)
    plain = with_part(lambda layer, x: layer(x), trained)
    found, expected = (evalkit.score(m, inputs(), TARGETS).gamma for m in (part, plain))
    assert list(found) == pytest.approx(list(expected), rel=1e-9)
    gram = evalkit.linearize(part, inputs(), TARGETS).gram
    torch.testing.assert_close(gram, dense.dense(plain, inputs(), TARGETS, "categorical").gram)


def test_an_operator_without_a_backward_is_refused() -> None:
    model = residual(torch.ops.evalkit_tests.squared)
    said = refusal(lambda: evalkit.linearize(model, inputs(), TARGETS))
    assert "module 'block.culprit' (Custom)" in said
    frozen = nn.Sequential(Custom(torch.ops.evalkit_tests.squared), nn.Linear(4, 3)).double()
    assert evalkit.linearize(frozen, inputs().requires_grad_(), TARGETS).num_params == 15


def test_the_layer_that_torch_cannot_differentiate_twice_is_named() -> None:
    # The kernel itself: for torch.cdist another operator stands in.
    model = residual(lambda h: torch._VF.cdist(h, torch.ones(5, 5).to(h), 3.0, None))
    said = refusal(lambda: evalkit.score(model, inputs(), TARGETS, methods="sgd"))
    assert "module 'block.culprit' (Custom)" in said
    assert "cdist" in said
