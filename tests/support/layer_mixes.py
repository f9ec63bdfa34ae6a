"""Cases in which layers with a rule stand in unusual company.

Also models that differentiate, vectorise or recompute inside their forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from tests.support.layer_cases import frozen, headed, layer_case
from tests.support.table import Net

# --- frozen layers, and layers in company ----------------------------------------------------


@layer_case()
def frozen_layers_between_trainable_ones(draw):
    """As under LoRA: gradients flow through, but no parameter of these is scored."""

    def rule(net, x):
        h = torch.tanh(net.conv(net.down(x).transpose(1, 2)))
        h = net.layer_norm(net.group_norm(h).transpose(1, 2))
        return net.out(torch.tanh(net.up(h)).flatten(1))

    model = Net(
        rule,
        down=nn.Linear(3, 4),
        conv=frozen(nn.Conv1d(4, 4, 2, groups=2)),
        group_norm=frozen(nn.GroupNorm(2, 4)),
        layer_norm=frozen(nn.LayerNorm(4)),
        up=nn.Linear(4, 2, bias=False),
        out=nn.Linear(8, 3),
    )
    return model, draw.normal(4, 5, 3), draw.integers(3, 4)


@layer_case(
    fallback=[f"attention.{name}" for name in ("in_proj_weight", "in_proj_bias")]
    + ["attention.out_proj.weight", "attention.out_proj.bias"]
)
def attention_between_convolutions(draw):
    def rule(net, x):
        h = net.norm(net.conv(x).transpose(1, 2))
        attended, _ = net.attention(h, h, h)
        return net.out(torch.tanh(net.second((h + attended).transpose(1, 2))).flatten(1))

    model = Net(
        rule,
        conv=nn.Conv1d(2, 4, 2),
        norm=nn.LayerNorm(4),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
        second=nn.Conv1d(4, 2, 2),
        out=nn.Linear(6, 3),
    )
    return model, draw.normal(4, 2, 5), draw.integers(3, 4)


@layer_case(fallback=[f"0.parametrizations.weight.original{i}" for i in (0, 1)])
def weight_normalised_convolution(draw):
    inputs = draw.normal(4, 2, 6)
    layers = [weight_norm(nn.Conv1d(2, 3, 3)), nn.Tanh(), nn.Conv1d(3, 2, 2)]
    return headed(layers, inputs), inputs, draw.integers(3, 4)


@layer_case(fallback=["2.parametrizations.weight.original"])
def spectrally_normalised_convolution(draw):
    inputs = draw.normal(4, 2, 6)
    layers = [nn.Conv1d(2, 3, 1), nn.Tanh(), spectral_norm(nn.Conv1d(3, 2, 3)).eval(), nn.Tanh()]
    model = headed(layers, inputs).eval()
    for buffer in model.buffers():
        buffer.copy_(F.normalize(draw.normal(*buffer.shape), dim=0))
    return model, inputs, draw.integers(3, 4)


@layer_case(fallback=["packed"])
def convolution_with_weight_and_bias_in_one(draw):
    def rule(net, x):
        weight, bias = net.packed.split([12, 2])
        return net.out(torch.tanh(F.conv1d(net.conv(x), weight.view(2, 2, 3), bias)).flatten(1))

    packed = nn.Parameter(torch.zeros(14))
    model = Net(rule, conv=nn.Conv1d(2, 2, 1), packed=packed, out=nn.Linear(8, 3))
    return model, draw.normal(4, 2, 6), draw.integers(3, 4)


@layer_case(fallback=["conv.bias", "norm.weight"])
def halves_of_layers_used_elsewhere(draw):
    """One parameter of each layer acts a second time outside, the other one does not."""

    def rule(net, x):
        h = torch.tanh(net.norm(net.conv(x))) * net.conv.bias.sin().view(1, -1, 1)
        return net.out((h + net.norm.weight.cos().view(1, -1, 1)).flatten(1))

    model = Net(rule, conv=nn.Conv1d(2, 4, 3), norm=nn.GroupNorm(2, 4), out=nn.Linear(16, 3))
    return model, draw.normal(4, 2, 6), draw.integers(3, 4)


@layer_case()
def gradients_changed_on_the_way(draw):
    """A hook doubles the gradients of a layer's outputs, a view of them is overwritten."""

    def rule(net, x):
        h = net.conv(x)
        h.register_hook(lambda gradient: 2 * gradient)
        h = net.norm(h)
        h[:, 0].mul_(3.0)
        return net.out(F.relu_(h[:, 1:]).flatten(1) + h[:, 0].repeat(1, 3))

    model = Net(rule, conv=nn.Conv1d(2, 4, 3), norm=nn.GroupNorm(2, 4), out=nn.Linear(12, 3))
    return model, draw.normal(4, 2, 6), draw.integers(3, 4)


# --- derivatives, vectorisation and recomputation inside the forward -------------------------

ENERGY = ["conv.weight", "norm.weight", "second.weight"]


@layer_case(fallback=ENERGY, vectorized=False)
def forces_through_convolutions_and_group_norm(draw):
    def rule(net, x):
        x = x.detach().requires_grad_()
        h = torch.tanh(net.second(torch.tanh(net.norm(net.conv(x)))))
        (force,) = torch.autograd.grad(h.square().sum(), x, create_graph=True)
        return net.out(torch.cat([force.flatten(1), h.flatten(1)], 1))

    parts = {"conv": nn.Conv1d(2, 4, 3), "norm": nn.GroupNorm(2, 4), "second": nn.Conv1d(4, 2, 2)}
    return Net(rule, **parts, out=nn.Linear(18, 3)), draw.normal(4, 2, 6), draw.integers(3, 4)


@layer_case(fallback=["conv.weight", "norm.weight"])
def forces_on_hidden_features_through_layer_norm(draw):
    """Differentiated in features that themselves depend on parameters."""

    def rule(net, x):
        h = net.first(x)
        energy = torch.tanh(net.norm(net.conv(h))).square().sum()
        (force,) = torch.autograd.grad(energy, h, create_graph=True)
        return net.out(torch.cat([force, h], 1).flatten(1))

    parts = {"first": nn.Conv1d(2, 2, 1), "conv": nn.Conv1d(2, 3, 3), "norm": nn.LayerNorm(4)}
    return Net(rule, **parts, out=nn.Linear(24, 3)), draw.normal(4, 2, 6), draw.integers(3, 4)


@layer_case(fallback=["conv.weight", "norm.weight"], vectorized=False)
def derivative_of_a_derivative_inside(draw):
    def rule(net, x):
        x = x.detach().requires_grad_()
        energy = torch.tanh(net.norm(net.conv(x))).square().sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        (change,) = torch.autograd.grad(force.square().sum(), x, create_graph=True)
        return net.out(change.flatten(1))

    parts = {"conv": nn.Conv1d(2, 2, 3), "norm": nn.GroupNorm(1, 2)}
    return Net(rule, **parts, out=nn.Linear(10, 3)), draw.normal(4, 2, 5), draw.integers(3, 4)


@layer_case(vectorized=False)
def saliency_taken_as_a_constant(draw):
    def rule(net, x):
        x = x.detach().requires_grad_()
        h = torch.tanh(net.norm(net.conv(x)))
        (force,) = torch.autograd.grad(h.square().sum(), x, retain_graph=True)
        return net.out(torch.cat([force.flatten(1), h.flatten(1)], 1))

    parts = {"conv": nn.Conv1d(2, 2, 3), "norm": nn.LayerNorm(4)}
    return Net(rule, **parts, out=nn.Linear(20, 3)), draw.normal(4, 2, 6), draw.integers(3, 4)


@layer_case(fallback=["conv.weight", "conv.bias", "norm.weight", "norm.bias"])
def vectorised_inside(draw):
    def rule(net, x):
        def single(sample):
            return torch.tanh(net.norm(F.conv2d(sample, net.conv.weight, net.conv.bias)))

        return net.out(torch.vmap(single)(x).flatten(1))

    parts = {"conv": nn.Conv2d(2, 3, 2), "norm": nn.LayerNorm((2, 2))}
    return Net(rule, **parts, out=nn.Linear(12, 3)), draw.normal(4, 2, 3, 3), draw.integers(3, 4)


@layer_case(fallback=["conv.weight", "conv.bias", "norm.weight", "norm.bias"])
def forward_mode_inside(draw):
    def rule(net, x):
        def features(z):
            return torch.tanh(net.norm(net.conv(z)))

        value, change = torch.func.jvp(features, (x,), (torch.ones_like(x),))
        return net.out(torch.cat([value, change], 1).flatten(1))

    parts = {"conv": nn.Conv1d(2, 2, 3), "norm": nn.GroupNorm(1, 2)}
    return Net(rule, **parts, out=nn.Linear(16, 3)), draw.normal(4, 2, 6), draw.integers(3, 4)


@layer_case(vectorized=False)
def recomputed_linear_layers(draw):
    def rule(net, x):
        h = net.first(x)
        return net.out(checkpoint(lambda t: torch.tanh(net.hidden(t)), h, use_reentrant=False))

    parts = {"first": nn.Linear(4, 5), "hidden": nn.Linear(5, 4), "out": nn.Linear(4, 3)}
    return Net(rule, **parts), draw.normal(5, 4), draw.integers(3, 5)
