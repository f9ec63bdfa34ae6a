"""Cases in which a parameter is used in an unusual way: twice, elsewhere, partly or not at all.

Also what happens between a Linear and the rest: hooks that change values, activations that
overwrite what they are given.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.support.table import Net, case, with_ignored


@case()
def module_used_twice(draw):
    model = Net(
        lambda net, x: net.out(torch.tanh(net.hidden(torch.tanh(net.hidden(x))))),
        hidden=nn.Linear(5, 5),
        out=nn.Linear(5, 3),
    )
    return model, draw.normal(6, 5), draw.integers(3, 6)


@case()
def module_used_twice_once_without_gradient(draw):
    model = Net(
        lambda net, x: net.out(net.hidden(x).detach().sigmoid() * torch.tanh(net.hidden(x))),
        hidden=nn.Linear(5, 6),
        out=nn.Linear(6, 3),
    )
    return model, draw.normal(6, 5), draw.integers(3, 6)


@case()
def embedding_tied_by_function(draw):
    model = Net(
        lambda net, tokens: F.linear(
            torch.tanh(net.hidden(net.embedding(tokens))), net.embedding.weight
        ),
        embedding=nn.Embedding(7, 5),
        hidden=nn.Linear(5, 5),
    )
    return model, draw.integers(7, 5, 4), with_ignored(draw.integers(7, 5, 4))


@case()
def embedding_tied_by_attribute(draw):
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 7))
    model[3].weight = model[0].weight
    return model, draw.integers(7, 5, 4), with_ignored(draw.integers(7, 5, 4))


@case("gaussian")
def linear_weight_used_beside_its_module(draw):
    """An autoencoder with tied weights: the weight acts in its module and once more outside."""
    model = Net(
        lambda net, x: F.linear(torch.tanh(net.encode(x)), net.encode.weight.T),
        encode=nn.Linear(5, 3),
    )
    return model, draw.normal(5, 5), draw.normal(5, 5)


@case()
def frozen_parameters(draw):
    layers = [nn.Embedding(9, 5), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(6, 6), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3))
    frozen = (model[0].weight, model[1].weight, model[3].bias, model[5].weight, model[5].bias)
    for parameter in frozen:
        parameter.requires_grad_(False)
    return model, draw.integers(9, 6, 3), draw.integers(3, 6)


@case()
def low_rank_adapter(draw):
    model = Net(
        lambda net, x: net.head(torch.tanh(net.base(x) + 2.0 * net.up(net.down(x)))),
        base=nn.Linear(8, 8),
        down=nn.Linear(8, 2, bias=False),
        up=nn.Linear(2, 8, bias=False),
        head=nn.Linear(8, 3),
    )
    for parameter in (*model.base.parameters(), *model.head.parameters()):
        parameter.requires_grad_(False)
    return model, draw.normal(5, 3, 8), with_ignored(draw.integers(3, 5, 3))


@case()
def without_bias(draw):
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
    return model, draw.normal(6, 5), draw.integers(3, 6)


@case()
def unused_parameters(draw):
    def rule(net, x):
        hidden = torch.tanh(net.hidden(x))
        net.discarded(hidden)
        return net.out(hidden + net.detached(hidden).detach())

    model = Net(
        rule,
        hidden=nn.Linear(4, 6),
        never=nn.Linear(2, 2),
        spare=nn.Parameter(torch.zeros(3)),
        discarded=nn.Linear(6, 2),
        detached=nn.Linear(6, 6),
        out=nn.Linear(6, 3),
    )
    return model, draw.normal(5, 4), draw.integers(3, 5)


@case()
def parameter_without_dimensions(draw):
    model = Net(
        lambda net, x: net.out(torch.tanh(net.scale * x)),
        scale=nn.Parameter(torch.ones(())),
        out=nn.Linear(5, 3),
    )
    return model, draw.normal(6, 5), draw.integers(3, 6)


@case()
def weight_normalised(draw):
    model = nn.Sequential(weight_norm(nn.Linear(5, 7)), nn.Tanh(), nn.Linear(7, 3))
    return model, draw.normal(6, 5), draw.integers(3, 6)


class ScaledLinear(nn.Linear):
    """A Linear by inheritance only: its weight acts threefold."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, 3.0 * self.weight, self.bias)


@case()
def linear_subclass_with_its_own_forward(draw):
    model = nn.Sequential(ScaledLinear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    return model, draw.normal(6, 5), draw.integers(3, 6)


@case()
def hooks_that_change_values(draw):
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))
    model[0].register_forward_hook(lambda module, args, output: 2.0 * output)
    model[2].register_forward_pre_hook(lambda module, args: (3.0 * args[0],))
    return model, draw.normal(6, 5), draw.integers(3, 6)


@case()
def inplace_operations(draw):
    def rule(net, x):
        hidden = net.second(net.relu(net.first(x)))
        hidden *= 3.0
        hidden += x
        return net.out(net.relu(hidden))

    model = Net(
        rule,
        first=nn.Linear(5, 8),
        relu=nn.ReLU(inplace=True),
        second=nn.Linear(8, 5),
        out=nn.Linear(5, 3),
    )
    return model, draw.normal(6, 5), draw.integers(3, 6)
