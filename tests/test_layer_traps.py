"""Forwards in which a layer with a rule is not what it seems: right numbers, or one sentence.

What is here either mixes the samples, so that only the slowest route to the Gram matrix is right,
or is compared with something else than the dense reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import evalkit
from tests.support.agreement import agrees_with_dense, sequences
from tests.support.dense import assert_near
from tests.support.layer_cases import headed
from tests.support.table import Draw, Net

Rule = Callable[..., Tensor]


# --- weights that depend on each other or on the inputs --------------------------------------


def conv_weight_times_its_bias(net: Any, x: Tensor) -> Tensor:
    return F.conv1d(x, net.weight * net.bias.view(-1, 1, 1), net.bias)


def conv_weight_plus_its_bias(net: Any, x: Tensor) -> Tensor:
    return F.conv1d(x, net.weight + net.bias.view(-1, 1, 1), net.bias)


def conv_bias_made_of_its_weight(net: Any, x: Tensor) -> Tensor:
    return F.conv1d(x, net.weight, net.bias + net.weight.sin().sum((1, 2)))


def group_norm_with_one_plus_its_bias(net: Any, x: Tensor) -> Tensor:
    return F.group_norm(net.conv(x), 2, 1 + net.bias, net.bias)


def group_norm_with_one_parameter_for_both(net: Any, x: Tensor) -> Tensor:
    return F.group_norm(net.conv(x), 2, net.bias, net.bias)


def layer_norm_with_one_parameter_for_both(net: Any, x: Tensor) -> Tensor:
    return F.layer_norm(net.conv(x).transpose(1, 2), (4,), net.bias, net.bias)


def linear_with_one_parameter_for_both(net: Any, x: Tensor) -> Tensor:
    return F.linear(net.conv(x), net.bias.expand(4, 4), net.bias)


@pytest.mark.parametrize(
    "rule",
    [
        conv_weight_times_its_bias,
        conv_weight_plus_its_bias,
        conv_bias_made_of_its_weight,
        group_norm_with_one_plus_its_bias,
        group_norm_with_one_parameter_for_both,
        layer_norm_with_one_parameter_for_both,
        linear_with_one_parameter_for_both,
    ],
    ids=lambda rule: rule.__name__,
)
def test_weights_and_biases_that_depend_on_each_other(rule: Rule) -> None:
    model = Net(
        lambda net, x: net.out(torch.tanh(rule(net, x)).flatten(1)),
        conv=nn.Conv1d(2, 4, 3),
        weight=nn.Parameter(torch.zeros(4, 2, 3)),
        bias=nn.Parameter(torch.zeros(4)),
        out=nn.Linear(16, 3),
    )
    agrees_with_dense(model, sequences())


@pytest.mark.parametrize("first", [nn.LayerNorm(4), nn.GroupNorm(2, 4)])
def test_a_weight_of_one_layer_that_is_the_bias_of_another(first: nn.Module) -> None:
    def rule(net: Any, x: Tensor) -> Tensor:
        h = net.first(net.conv(x).mean(2))
        return net.out(torch.tanh(F.group_norm(h, 2, net.weight, net.first.weight)))

    model = Net(
        rule,
        conv=nn.Conv1d(2, 4, 3),
        first=first,
        weight=nn.Parameter(torch.zeros(4)),
        out=nn.Linear(4, 3),
    )
    agrees_with_dense(model, sequences())


def test_a_convolution_used_in_a_row_and_elsewhere() -> None:
    """Inputs of the second call depend on its weight: the gradient in the weight alone counts."""

    def rule(net: Any, x: Tensor) -> Tensor:
        h = net.conv(torch.tanh(net.conv(x))).flatten(1)
        return net.out(torch.tanh(h * net.conv.weight.square().sum()))

    model = Net(rule, conv=nn.Conv1d(2, 2, 3, padding=1), out=nn.Linear(12, 3))
    agrees_with_dense(model, sequences())


def test_a_convolution_whose_weight_depends_on_its_inputs() -> None:
    """And a derivative in these inputs inside the forward, which may not go through the weight."""

    def rule(net: Any, x: Tensor) -> Tensor:
        h = net.first(x)
        z = torch.tanh(F.conv1d(h, net.weight * h.mean((0, 2)).view(1, -1, 1), net.bias))
        (change,) = torch.autograd.grad(z.square().sum(), h, create_graph=True)
        return net.out(torch.cat([z.flatten(1), change.flatten(1)], 1))

    model = Net(
        rule,
        first=nn.Conv1d(2, 2, 1),
        weight=nn.Parameter(torch.zeros(3, 2, 3)),
        bias=nn.Parameter(torch.zeros(3)),
        out=nn.Linear(24, 3),
    )
    agrees_with_dense(model, sequences(), quiet=False)


# --- memory formats and layers without inputs -------------------------------------------------


def test_a_view_of_group_norm_after_a_transposition() -> None:
    """Torch's layer returns contiguous outputs for strides of no memory format."""
    model = Net(
        lambda net, x: net.out(net.norm(net.linear(x).transpose(1, 2)).view(len(x), -1)),
        linear=nn.Linear(6, 4),
        norm=nn.GroupNorm(2, 4),
        out=nn.Linear(8, 3),
    )
    agrees_with_dense(model, sequences())


def test_a_view_of_group_norm_with_channels_last() -> None:
    """The layer keeps its inputs' strides, as torch's does; with others the view is refused."""
    model = Net(
        lambda net, x: net.out(net.norm(net.conv(x)).permute(0, 2, 3, 1).view(len(x), -1)),
        conv=nn.Conv2d(2, 4, 3),
        norm=nn.GroupNorm(2, 4),
        out=nn.Linear(16, 3),
    )
    images = Draw(2).normal(5, 2, 4, 4)
    agrees_with_dense(model, images.contiguous(memory_format=torch.channels_last))


def test_experts_that_no_sample_chose() -> None:
    def rule(net: Any, x: Tensor) -> Tensor:
        chosen, total = x[:, 0] > 0, torch.zeros(len(x), 5, dtype=x.dtype)
        for expert, here in ((net.one, chosen), (net.other, ~chosen)):
            total = total.index_put((here,), expert(x[here]))
        return net.out(torch.tanh(total))

    model = Net(rule, one=nn.Linear(4, 5), other=nn.Linear(4, 5), out=nn.Linear(5, 3))
    agrees_with_dense(model, Draw(2).normal(4, 4).abs(), quiet=False)


def test_a_layer_over_no_positions() -> None:
    model = Net(
        lambda net, x: net.out(torch.cat([x, net.none(x[:, :0])], 1).sum(1)),
        none=nn.Linear(6, 6),
        out=nn.Linear(6, 3),
    )
    agrees_with_dense(model, sequences())


# --- derivatives, steps and recomputation inside the forward ---------------------------------


@pytest.mark.parametrize("chosen", [("weight",), ("bias",), ("weight", "bias")])
@pytest.mark.parametrize("layer", [nn.Conv1d(2, 4, 3), nn.GroupNorm(1, 2), nn.LayerNorm(6)])
def test_a_training_step_inside_the_forward(layer: nn.Module, chosen: tuple[str, ...]) -> None:
    """Parameters move along their gradients over the batch before they are used again."""

    def rule(net: Any, x: Tensor) -> Tensor:
        energy = torch.tanh(net.layer(x)).square().sum()
        old = [getattr(net.layer, name) for name in chosen]
        steps = torch.autograd.grad(energy, old, create_graph=True)
        new = {name: p - 0.1 * s for name, p, s in zip(chosen, old, steps, strict=True)}
        moved = torch.func.functional_call(net.layer, new, (x,))
        return net.out(torch.tanh(moved).flatten(1))

    width = layer(torch.zeros(1, 2, 6, dtype=next(layer.parameters()).dtype)).numel()
    model = Net(rule, layer=layer, out=nn.Linear(width, 3))
    agrees_with_dense(model, sequences(), quiet=False)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm(4)])
def test_recomputed_convolutions_and_norms(norm: nn.Module) -> None:
    """As transformers do with ``gradient_checkpointing``."""
    model = Net(
        lambda net, x: net.out(
            checkpoint(
                lambda t: torch.tanh(net.norm(net.conv(t))), net.first(x), use_reentrant=False
            ).flatten(1)
        ),
        first=nn.Conv1d(2, 2, 1),
        conv=nn.Conv1d(2, 4, 3),
        norm=norm,
        out=nn.Linear(16, 3),
    )
    agrees_with_dense(model, sequences())


def body_and_out(run: Rule) -> Net:
    body = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    return Net(lambda net, x: net.out(run(net.body, x)), body=body, out=nn.Linear(4, 3)).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [True, False])
def test_recomputation_in_another_precision(dtype: torch.dtype, frozen: bool) -> None:
    """The backward would run the caller's module, in its own precision: activations are kept."""
    model = body_and_out(lambda body, x: checkpoint(body, x, use_reentrant=False)).to(dtype)
    plain = body_and_out(lambda body, x: body(x)).to(dtype)
    plain.load_state_dict(model.state_dict())
    for each in (model, plain):
        each.body.requires_grad_(not frozen)
    inputs, targets = Draw(2).normal(5, 4).to(dtype), Draw(3).integers(3, 5)
    for precision in (None, "float64"):
        lin, expected = (
            evalkit.linearize(m, inputs, targets, dtype=precision) for m in (model, plain)
        )
        assert torch.equal(lin.gradient, expected.gradient)
        assert_near(lin.jvp(lin.gradient).double(), expected.jvp(lin.gradient).double(), 1e-6)


def test_recomputation_of_another_kind_in_another_precision_is_refused() -> None:
    def kept(body: nn.Module, x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            return body(x)

    model = body_and_out(kept)
    inputs, targets = Draw(2).normal(5, 4).float(), Draw(3).integers(3, 5)
    assert evalkit.linearize(model, inputs, targets).gradient.isfinite().all()
    with pytest.raises(evalkit.EvalkitError, match="activation checkpointing"):
        evalkit.linearize(model, inputs, targets, dtype="float64")


def test_forward_mode_without_a_function_transform() -> None:
    def rule(net: Any, x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            value, change = forward_ad.unpack_dual(torch.tanh(net.norm(net.conv(dual))))
        return net.out(torch.cat([value, change], 1).flatten(1))

    parts = {"conv": nn.Conv1d(2, 2, 3), "norm": nn.GroupNorm(1, 2)}
    agrees_with_dense(Net(rule, **parts, out=nn.Linear(16, 3)), sequences())


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 2), nn.LayerNorm(4)])
def test_several_gradients_at_once_inside(norm: nn.Module) -> None:
    def rule(net: Any, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        z = torch.tanh(net.norm(net.conv(x)))
        total = z.sum(0).flatten()
        units = torch.eye(len(total), dtype=x.dtype)
        (rows,) = torch.autograd.grad(total, x, units, retain_graph=True, is_grads_batched=True)
        return net.out(torch.cat([rows.square().sum(0).flatten(1), z.flatten(1)], 1))

    agrees_with_dense(
        Net(rule, conv=nn.Conv1d(2, 2, 3), norm=norm, out=nn.Linear(20, 3)), sequences()
    )


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_backward_hooks_on_layers() -> None:
    model = headed([nn.Conv1d(2, 2, 1), nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4)], sequences())
    for layer in model[1:3]:
        layer.register_full_backward_hook(lambda module, inside, outside: (3 * inside[0],))
    agrees_with_dense(model, sequences())


def test_layers_used_once_more_without_gradient() -> None:
    def rule(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = net.norm(net.conv(x)).sigmoid()
        return net.out((gate * torch.tanh(net.norm(net.conv(x)))).flatten(1))

    parts = {"conv": nn.Conv1d(2, 4, 3), "norm": nn.GroupNorm(2, 4)}
    agrees_with_dense(Net(rule, **parts, out=nn.Linear(16, 3)), sequences())


# --- axis 0 that is as long as the batch and is something else -------------------------------


def test_positions_looked_up_once_for_as_many_samples() -> None:
    def rule(net: Any, tokens: Tensor) -> Tensor:
        positions = net.positions(torch.arange(tokens.shape[1]))
        return net.out(torch.tanh(net.tokens(tokens) + positions).mean(1))

    model = Net(rule, tokens=nn.Embedding(6, 4), positions=nn.Embedding(5, 4), out=nn.Linear(4, 3))
    agrees_with_dense(model, Draw(2).integers(6, 5, 5))


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.LayerNorm(4)]
)
def test_time_first_with_as_many_steps_as_samples(layer: nn.Module) -> None:
    """Convolution and normalisation run over samples where axis 0 is time."""

    def rule(net: Any, x: Tensor) -> Tensor:
        h = net.hidden(x).transpose(0, 1)
        h = net.layer(h.transpose(1, 2)).transpose(1, 2) if h.shape[2] == 4 else h
        return net.out(torch.tanh(h).cumsum(0).mean(0))

    model = Net(rule, hidden=nn.Linear(3, 4), layer=layer, out=nn.Linear(4, 3))
    agrees_with_dense(model, Draw(2).normal(4, 4, 3), quiet=False)
