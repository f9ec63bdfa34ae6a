"""Cases of embeddings and normalisations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.layer_cases import frozen, headed, layer_case
from tests.support.table import Net

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


@layer_case()
def embedding_of_positions(draw):
    """Looked up once for the whole batch, from a range that is no longer than a sample."""
    model = Net(
        lambda net, x: net.out(
            torch.tanh(
                net.norm(net.tokens(x) + net.positions(torch.arange(x.shape[1], device=x.device)))
            ).mean(1)
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
