"""Cases of embeddings and normalisations, and of layers in unusual company.

Also models that differentiate, vectorise or recompute inside their forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from tests.layer_cases import frozen, headed, layer_case
from tests.table import Net

# --- embeddings ------------------------------------------------------------------------------


@layer_case()
def embedding_with_padding(draw):
    inputs = draw.integers(6, 5, 4)
    inputs[:, 0] = 2
    layers = [nn.Embedding(6, 3, padding_idx=2), nn.Linear(3, 4), nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 5)


@layer_case()
def embedding_with_padding_from_the_end(draw):
    inputs = draw.integers(6, 5, 4)
    inputs[1:, -1] = 5
    layers = [nn.Embedding(6, 3, padding_idx=-1), nn.LayerNorm(3), nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 5)


@layer_case()
def embedding_with_a_sample_of_padding(draw):
    inputs = draw.integers(6, 5, 4)
    inputs[3] = 0
    return headed([nn.Embedding(6, 3, padding_idx=0)], inputs), inputs, draw.integers(3, 5)


@layer_case(fallback=["0.weight"], vectorized=False)
def embedding_with_largest_norm(draw):
    inputs = draw.integers(6, 5, 3)
    return (
        headed([nn.Embedding(6, 4, max_norm=0.7), nn.Tanh()], inputs),
        inputs,
        draw.integers(3, 5),
    )


@layer_case()
def embedding_of_one_index_per_sample(draw):
    """Several samples share an index, so that their gradients meet in one row."""
    inputs = torch.tensor([4, 1, 4, 0, 1, 4])
    return headed([nn.Embedding(6, 4), nn.Tanh()], inputs), inputs, draw.integers(3, 6)


@layer_case()
def embedding_of_several_axes(draw):
    inputs = draw.integers(5, 4, 2, 3).to(torch.int32)
    return headed([nn.Embedding(5, 2), nn.Tanh()], inputs), inputs, draw.integers(3, 4)


@layer_case()
def embedding_of_repeated_tokens(draw):
    inputs = draw.integers(2, 5, 6)
    inputs[0], inputs[1] = 1, 0
    model = Net(
        lambda net, x: net.out(torch.tanh(net.hidden(net.embedding(x))).mean(1)),
        embedding=nn.Embedding(40, 3),
        hidden=nn.Linear(3, 4),
        out=nn.Linear(4, 3),
    )
    return model, inputs, draw.integers(3, 5)


@layer_case()
def embedding_used_twice(draw):
    model = Net(
        lambda net, a, b: net.out(torch.tanh(net.table(a) * net.table(b).mean(1))),
        table=nn.Embedding(6, 4),
        out=nn.Linear(4, 3),
    )
    return model, (draw.integers(6, 5), draw.integers(6, 5, 3)), draw.integers(3, 5)


@layer_case()
def embedding_used_with_two_paddings(draw):
    def rule(net, x):
        first = F.embedding(weight=net.table, input=x, padding_idx=-2)
        second = F.embedding(x.flip(1), net.table, 1)
        return net.out(torch.tanh(first * second).flatten(1))

    table = nn.Parameter(torch.zeros(5, 3))
    return Net(rule, table=table, out=nn.Linear(12, 3)), draw.integers(5, 5, 4), draw.integers(3, 5)


@layer_case(fallback=["positions.weight"])
def embedding_of_positions(draw):
    """Looked up once for the whole batch, from a range that is no longer than a sample."""
    model = Net(
        lambda net, x: net.out(
            torch.tanh(net.norm(net.tokens(x) + net.positions(torch.arange(x.shape[1])))).mean(1)
        ),
        tokens=nn.Embedding(6, 4),
        positions=nn.Embedding(3, 4),
        norm=nn.LayerNorm(4),
        out=nn.Linear(4, 3),
    )
    return model, draw.integers(6, 5, 3), draw.integers(3, 5)


# --- normalisations --------------------------------------------------------------------------


@layer_case()
def layer_norm_of_features(draw):
    inputs = draw.normal(5, 4)
    layers = [nn.Linear(4, 6), nn.LayerNorm(6, eps=0.1), nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 5)


@layer_case()
def layer_norm_of_two_axes_over_positions(draw):
    inputs = draw.normal(4, 2, 3, 2)
    layers = [nn.LayerNorm((3, 2)), nn.Linear(2, 3), nn.LayerNorm((2, 3, 3)), nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 4)


@layer_case()
def layer_norm_without_bias(draw):
    inputs = draw.normal(4, 3, 4)
    layers = [nn.Linear(4, 5), nn.LayerNorm(5, bias=False), nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 4)


@layer_case()
def layer_norm_without_parameters(draw):
    inputs = draw.normal(4, 3, 4)
    layers = [nn.Linear(4, 5), nn.LayerNorm(5, elementwise_affine=False), nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 4)


@layer_case()
def layer_norm_of_transposed_positions(draw):
    def rule(net, x):
        mixed = net.norm(net.hidden(x).transpose(1, 2))
        return net.out(torch.tanh(net.second(mixed.transpose(1, 2))).mean(1))

    model = Net(
        rule,
        hidden=nn.Linear(4, 5),
        norm=nn.LayerNorm(3),
        second=nn.LayerNorm(5),
        out=nn.Linear(5, 3),
    )
    return model, draw.normal(4, 3, 4), draw.integers(3, 4)


@layer_case()
def layer_norm_with_half_of_it_frozen(draw):
    inputs = draw.normal(5, 4)
    first, second = frozen(nn.LayerNorm(6), "weight"), frozen(nn.LayerNorm(6), "bias")
    layers = [nn.Linear(4, 6), first, nn.Tanh(), nn.Linear(6, 6), second, nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 5)


@layer_case()
def layer_norm_used_twice(draw):
    model = Net(
        lambda net, x: net.out(net.norm(torch.tanh(net.hidden(net.norm(x))))),
        hidden=nn.Linear(5, 5),
        norm=nn.LayerNorm(5),
        out=nn.Linear(5, 3),
    )
    return model, draw.normal(5, 5), draw.integers(3, 5)


@layer_case()
def layer_norm_called_with_keywords(draw):
    def rule(net, x):
        once = F.layer_norm(normalized_shape=[6], bias=net.bias, input=net.hidden(x), eps=1e-3)
        return net.out(torch.tanh(torch.layer_norm(once, (6,), net.weight)))

    model = Net(
        rule,
        hidden=nn.Linear(4, 6),
        weight=nn.Parameter(torch.zeros(6)),
        bias=nn.Parameter(torch.zeros(6)),
        out=nn.Linear(6, 3),
    )
    return model, draw.normal(5, 4), draw.integers(3, 5)


@layer_case(fallback=["shift"])
def layer_norm_with_a_shifted_weight(draw):
    """The weight is 1 + shift, as some language models have it."""
    model = Net(
        lambda net, x: net.out(torch.tanh(F.layer_norm(net.hidden(x), (6,), 1 + net.shift))),
        hidden=nn.Linear(4, 6),
        shift=nn.Parameter(torch.zeros(6)),
        out=nn.Linear(6, 3),
    )
    return model, draw.normal(5, 4), draw.integers(3, 5)


@layer_case(fallback=["norm.weight", "norm.bias"])
def weight_of_two_kinds_of_norms(draw):
    def rule(net, x):
        once = F.group_norm(net.conv(x), 2, net.norm.weight, net.norm.bias)
        return net.out(torch.tanh(net.norm(once.transpose(1, 2))).flatten(1))

    model = Net(rule, conv=nn.Conv1d(2, 4, 3), norm=nn.LayerNorm(4), out=nn.Linear(16, 3))
    return model, draw.normal(4, 2, 6), draw.integers(3, 4)


@layer_case()
def group_norm_of_features(draw):
    inputs = draw.normal(5, 4)
    layers = [nn.Linear(4, 6), nn.GroupNorm(3, 6), nn.Tanh(), nn.GroupNorm(1, 6, eps=0.1)]
    return headed(layers, inputs), inputs, draw.integers(3, 5)


@layer_case()
def group_norm_of_sequences(draw):
    inputs = draw.normal(4, 2, 5)
    layers = [nn.GroupNorm(2, 2), nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 4)


@layer_case()
def group_norm_of_images_without_parameters(draw):
    inputs = draw.normal(4, 2, 4, 4)
    layers = [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4, affine=False), nn.Tanh(), nn.GroupNorm(4, 4)]
    return headed(layers, inputs), inputs, draw.integers(3, 4)


@layer_case(fallback=["1.weight"])
def root_mean_square_norm(draw):
    inputs = draw.normal(4, 3, 4)
    layers = [nn.Linear(4, 5), nn.RMSNorm(5), nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 4)


@layer_case(fallback=["1.weight", "1.bias"])
def instance_norm(draw):
    inputs = draw.normal(4, 2, 5)
    layers = [nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True), nn.Tanh()]
    return headed(layers, inputs).eval(), inputs, draw.integers(3, 4)


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
    return headed(layers, inputs).eval(), inputs, draw.integers(3, 4)


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

ENERGY = ["conv.weight", "norm.weight", "norm.bias", "second.weight"]


@layer_case(fallback=ENERGY, vectorized=False)
def forces_through_convolutions_and_group_norm(draw):
    def rule(net, x):
        x = x.detach().requires_grad_()
        h = torch.tanh(net.second(torch.tanh(net.norm(net.conv(x)))))
        (force,) = torch.autograd.grad(h.square().sum(), x, create_graph=True)
        return net.out(torch.cat([force.flatten(1), h.flatten(1)], 1))

    parts = {"conv": nn.Conv1d(2, 4, 3), "norm": nn.GroupNorm(2, 4), "second": nn.Conv1d(4, 2, 2)}
    return Net(rule, **parts, out=nn.Linear(18, 3)), draw.normal(4, 2, 6), draw.integers(3, 4)


@layer_case(fallback=["conv.weight", "norm.weight", "norm.bias"])
def forces_on_hidden_features_through_layer_norm(draw):
    """Differentiated in features that themselves depend on parameters."""

    def rule(net, x):
        h = net.first(x)
        energy = torch.tanh(net.norm(net.conv(h))).square().sum()
        (force,) = torch.autograd.grad(energy, h, create_graph=True)
        return net.out(torch.cat([force, h], 1).flatten(1))

    parts = {"first": nn.Conv1d(2, 2, 1), "conv": nn.Conv1d(2, 3, 3), "norm": nn.LayerNorm(4)}
    return Net(rule, **parts, out=nn.Linear(24, 3)), draw.normal(4, 2, 6), draw.integers(3, 4)


@layer_case(fallback=["conv.weight", "norm.weight", "norm.bias"], vectorized=False)
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
