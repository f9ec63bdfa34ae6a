"""Models that a shortcut would get wrong or damage: right numbers, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evalkit
from evalkit.likelihoods import get
from evalkit.reductions import norm
from evalkit.scoring.metrics import efficiency
from evalkit.updates.calling import accept
from tests.support import dense

TARGETS = torch.tensor([0, 1, 2, 0, 1])
METHODS = ("sgd", "ief", "ngd")


class Rule(nn.Module):
    """A forward given as a function of the module and its input."""

    def __init__(self, rule: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.rule = rule
        for name, part in parts.items():
            setattr(self, name, part)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self, x)


def inputs(samples: int = 5) -> Tensor:
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(0)).double()


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))))


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def agrees_with_dense(model: nn.Module) -> None:
    batch = (model, inputs(), TARGETS, "categorical")
    lin, expected = evalkit.linearize(*batch), dense.dense(*batch)
    torch.testing.assert_close(lin.gram, expected.gram)
    for scale in (0.01, 1.0, 100.0):
        torch.testing.assert_close(lin.vjp(scale * lin.logit_gradients), scale * lin.gradient)
    product = lin.jvp(lin.gradient).double()
    torch.testing.assert_close(lin.kernel_product(lin.logit_gradients), product)
    copy = deepcopy(model)  # functional_call may leave a module that is registered twice broken
    gradient = torch.autograd.functional.jacobian(
        lambda *values: (
            get("categorical")
            .losses(
                torch.func.functional_call(
                    copy, dict(zip(dict(model.named_parameters()), values, strict=True)), inputs()
                ),
                TARGETS,
            )
            .sum()
        ),
        tuple(model.parameters()),
    )
    torch.testing.assert_close(lin.gradient, torch.cat([part.flatten() for part in gradient]))


def test_a_module_registered_twice_is_left_whole_and_scored_right() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(4, 3)).double()
    before = [id(value) for value in (*model.parameters(), *model.buffers())]
    agrees_with_dense(model)
    evalkit.score(model, inputs(), TARGETS)
    assert [id(value) for value in (*model.parameters(), *model.buffers())] == before
    assert all(isinstance(value, nn.Parameter) for value in model.parameters())


def test_two_parameters_with_one_gradient_tensor() -> None:
    agrees_with_dense(
        Rule(lambda m, x: F.linear(x, m.a + m.b), a=parameter(3, 4), b=parameter(3, 4))
    )


@pytest.mark.parametrize("shape", [(1,), (5, 3)])
def test_a_bias_that_is_broadcast(shape: tuple[int, ...]) -> None:
    agrees_with_dense(
        Rule(lambda m, x: F.linear(x, m.w, m.b), w=parameter(3, 4), b=parameter(*shape))
    )


def test_a_weight_behind_many_operations() -> None:
    def rule(model: Any, x: Tensor) -> Tensor:
        weight = model.w
        for _ in range(1500):
            weight = weight * 1.0
        return F.linear(x, weight)

    agrees_with_dense(Rule(rule, w=parameter(3, 4)))


def test_a_parameter_kept_in_a_list_is_refused() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.kept = [self.linear.weight]

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.kept[0], self.linear.bias)

    with pytest.raises(evalkit.EvalkitError, match=r"linear\.weight"):
        evalkit.linearize(Kept().double(), inputs(), TARGETS)


class Opaque(torch.autograd.Function):
    """tanh with a backward that autograd cannot differentiate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return gradient * (1 - x.tanh() ** 2)


def test_an_opaque_backward_is_refused() -> None:
    model = Rule(
        lambda m, x: m.out(Opaque.apply(m.hidden(x))), hidden=nn.Linear(4, 6), out=nn.Linear(6, 3)
    )
    with pytest.raises(evalkit.EvalkitError, match="differentiated twice"):
        evalkit.score(model, inputs(), TARGETS)


def test_a_weak_interaction_of_samples_is_seen_in_float32() -> None:
    def rule(model: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(model.hidden(x))
        return model.out(hidden - 0.1 * hidden.mean(0))

    model = Rule(rule, hidden=nn.Linear(4, 20), out=nn.Linear(20, 3))
    batch = (inputs(40), torch.arange(40) % 3)
    exact = evalkit.linearize(model, *batch)
    with pytest.warns(UserWarning, match="influence each other"):
        gram = exact.gram
    single = evalkit.linearize(model.float(), batch[0].float(), batch[1])
    with pytest.warns(UserWarning, match="influence each other"):
        torch.testing.assert_close(single.gram, gram, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_evaluated_in_float32(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)).to(dtype)
    model[0].requires_grad_(False)
    model.register_buffer("unused", torch.ones(3, dtype=dtype))
    lin = evalkit.linearize(model, inputs().to(dtype), TARGETS)
    expected = evalkit.linearize(deepcopy(model).float(), inputs().to(dtype).float(), TARGETS)
    assert lin.logits.dtype == lin.gradient.dtype == torch.float32
    assert torch.equal(lin.logits, expected.logits)
    assert torch.equal(lin.gram, expected.gram)
    assert all(value.dtype == dtype for value in model.state_dict().values())


def test_parameters_of_two_precisions_are_evaluated_in_the_higher() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    exact = evalkit.linearize(deepcopy(model).double(), inputs(), TARGETS)
    model[2].double()
    lin = evalkit.linearize(model, inputs(), TARGETS)
    torch.testing.assert_close(lin.gradient, exact.gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lin.gram, exact.gram, rtol=1e-12, atol=1e-12)


def test_outputs_cast_by_the_forward() -> None:
    model = Rule(lambda net, x: net.a(x).double(), a=nn.Linear(4, 3))
    exact = evalkit.linearize(model, inputs(), TARGETS)
    lin = evalkit.linearize(deepcopy(model).float(), inputs().float(), TARGETS)
    assert lin.gradient.dtype == torch.float32
    torch.testing.assert_close(lin.gradient, exact.gradient.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lin.fvp(lin.gradient), exact.fvp(exact.gradient).float())


def test_float64_of_forwards_that_make_tensors_by_themselves() -> None:
    def written(net: Any, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 6)
        h[:, torch.arange(3)] = torch.tanh(net.a(x))
        h[:, 3:] = torch.full((3,), 0.1)
        return net.out(h)

    model = Rule(written, a=nn.Linear(4, 3), out=nn.Linear(6, 3)).float()
    default, x = torch.get_default_dtype(), inputs().float()
    lin = evalkit.linearize(model, x, TARGETS, dtype="float64")
    assert torch.get_default_dtype() is default
    torch.set_default_dtype(torch.float64)
    try:
        expected = dense.dense(deepcopy(model).double(), x.double(), TARGETS, "categorical")
    finally:
        torch.set_default_dtype(default)
    torch.testing.assert_close(lin.gradient, expected.gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_one_number_per_sample_without_an_axis_of_its_own(likelihood: str) -> None:
    targets = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    with_axis = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    without = Rule(lambda net, x: net.inner(x).squeeze(), inner=with_axis)
    for size in (None, 2):
        tables = [
            evalkit.score(model, inputs(), targets, likelihood, METHODS, micro_batch_size=size)
            for model in (with_axis, without)
        ]
        assert list(tables[0]["gamma"]) == list(tables[1]["gamma"])


def test_inference_mode_is_refused() -> None:
    model = nn.Linear(4, 3).double()
    with torch.inference_mode(), pytest.raises(evalkit.EvalkitError, match="inference_mode"):
        evalkit.linearize(model, inputs(), TARGETS)


@pytest.mark.parametrize("name", ["gram", "gradient", "logit_gradients", "gradient_norms"])
def test_methods_that_change_what_others_see_are_refused(name: str) -> None:
    lin = evalkit.linearize(nn.Linear(4, 3).double(), inputs(), TARGETS)

    def careless(lin: evalkit.Linearization, damping: float) -> Tensor:
        getattr(lin, name).mul_(2)
        return lin.gradient

    with pytest.raises(evalkit.EvalkitError, match=rf"lin\.{name} changed in place"):
        accept("careless", careless(lin, 0.0), lin)


def test_complex_directions_are_refused() -> None:
    lin = evalkit.linearize(nn.Linear(4, 3).double(), inputs(), TARGETS)
    with pytest.raises(evalkit.EvalkitError, match="real numbers"):
        accept("turned", 1j * lin.gradient, lin)


def test_outputs_so_saturated_that_their_fisher_vanishes() -> None:
    model = nn.Linear(4, 3).double()
    targets = model(1e6 * inputs()).argmin(1)
    lin = evalkit.linearize(model, 1e6 * inputs(), targets)
    for solver in ("auto", "cg", "direct"):
        found = evalkit.natural_gradient(lin, 1.0, solver=solver)
        torch.testing.assert_close(found.solution, lin.gradient)
        assert (found.converged, found.status) == (True, "residual")
    assert evalkit.score(model, 1e6 * inputs(), targets, methods="ngd")["gamma"][0] >= 0


@pytest.mark.parametrize("size", [1e-30, 1e-25, 1.0, 1e25])
def test_norms_of_extreme_vectors(size: float) -> None:
    vector = torch.full((8192,), size)
    assert norm(vector) == pytest.approx(size * 8192**0.5, rel=1e-5)


def test_the_floor_of_saturated_outputs_is_a_number() -> None:
    z, y = torch.tensor([[1500.0]]), torch.tensor([[1.0]])
    assert float(get("bernoulli").floor_terms(z, y.double()).sum()) == 0.0
    assert efficiency(0.0, 0.0) != efficiency(0.0, 0.0)  # NaN
