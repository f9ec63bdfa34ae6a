"""The table of cases: plain models, architectures, label positions and ways of calling.

``CASES[name].make()`` builds model, inputs and targets. The cases of its neighbours ``bag_cases``,
``broadcast_cases``, ``layer_cases``, ``layer_mixes``, ``norm_cases``, ``traps`` and ``weights`` are
in the same table.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from tests.support import (  # noqa: F401  more cases
    bag_cases,
    broadcast_cases,
    layer_cases,
    layer_mixes,
    norm_cases,
    traps,
    weights,
)
from tests.support.table import CASES, Batch, Draw, Net, case, with_ignored

__all__ = ["CASES", "Batch", "Draw", "Net"]

# --- plain models, the three likelihoods -----------------------------------------------------


@case()
def mlp_categorical(draw):
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
    return model, draw.normal(6, 6), draw.integers(4, 6)


@case("bernoulli")
def mlp_bernoulli(draw):
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    return model, draw.normal(6, 6), draw.bits(6, 3)


@case("gaussian")
def mlp_gaussian(draw):
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2))
    return model, draw.normal(6, 6), draw.normal(6, 2)


@case("gaussian")
def least_squares(draw):
    return nn.Linear(7, 1), draw.normal(5, 7), draw.normal(5, 1)


@case("gaussian")
def least_squares_more_samples_than_parameters(draw):
    return nn.Linear(4, 1), draw.normal(8, 4), draw.normal(8, 1)


@case("bernoulli")
def scalar_logit(draw):
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))
    return model, draw.normal(6, 5), draw.bits(6, 1)


@case()
def one_sample(draw):
    return (
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)),
        draw.normal(1, 4),
        draw.integers(3, 1),
    )


# --- architectures ---------------------------------------------------------------------------


@case()
def convolution_group_norm(draw):
    features = [nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*features, nn.Conv2d(4, 3, 2), nn.Flatten(), nn.Linear(12, 4))
    return model, draw.normal(5, 1, 6, 6), draw.integers(4, 5)


@case()
def batch_norm_in_eval_mode(draw):
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    model[1].running_mean.copy_(draw.normal(6))
    return model, draw.normal(6, 5), draw.integers(3, 6)


@case()
def attention_module(draw):
    def rule(net, tokens):
        x = net.norm(net.embedding(tokens) + net.positions)
        attended, _ = net.attention(x, x, x, need_weights=False)
        return net.head((x + attended).mean(1))

    model = Net(
        rule,
        embedding=nn.Embedding(11, 8),
        positions=nn.Parameter(torch.zeros(5, 8)),
        norm=nn.LayerNorm(8),
        attention=nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True),
        head=nn.Linear(8, 4),
    )
    return model.eval(), draw.integers(11, 6, 5), draw.integers(4, 6)


@case()
def attention_function_with_token_labels(draw):
    def rule(net, tokens):
        x = net.norm(net.embedding(tokens) + net.positions)
        q, k, v = net.projection(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return net.head(x + net.out(attended.transpose(1, 2).flatten(2)))

    model = Net(
        rule,
        embedding=nn.Embedding(11, 8),
        positions=nn.Parameter(torch.zeros(6, 8)),
        norm=nn.LayerNorm(8),
        projection=nn.Linear(8, 24),
        out=nn.Linear(8, 8),
        head=nn.Linear(8, 5),
    )
    return model, draw.integers(11, 5, 6), with_ignored(draw.integers(5, 5, 6))


@case()
def transformer_layer_in_eval_mode(draw):
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3)).eval()
    return model, draw.normal(4, 3, 8), draw.integers(3, 4)


@case()
def gated_recurrence(draw):
    model = Net(
        lambda net, x: net.head(net.cell(x)[0][:, -1]),
        cell=nn.GRU(4, 5, batch_first=True),
        head=nn.Linear(5, 3),
    )
    return model, draw.normal(5, 4, 4), draw.integers(3, 5)


@case("gaussian")
def forces_of_an_energy(draw):
    """The output is itself a gradient, so weights act a second time inside the forward."""

    def rule(net, x):
        x = x.detach().requires_grad_()
        energy = net.out(torch.tanh(net.hidden(x))).sum()
        return -torch.autograd.grad(energy, x, create_graph=True)[0]

    model = Net(rule, hidden=nn.Linear(4, 7), out=nn.Linear(7, 1))
    return model, draw.normal(5, 4), draw.normal(5, 4)


@case()
def branch_that_depends_on_data(draw):
    def rule(net, x):
        hidden = net.norm(net.hidden(x))
        return net.out(hidden.tanh() if hidden.square().sum().item() > 1e9 else hidden.sin())

    model = Net(rule, hidden=nn.Linear(4, 6), norm=nn.LayerNorm(6), out=nn.Linear(6, 3))
    return model, draw.normal(5, 4), draw.integers(3, 5)


class Cube(torch.autograd.Function):
    """An autograd function in the older style, which function transforms refuse."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


@case()
def autograd_function(draw):
    model = Net(
        lambda net, x: net.out(Cube.apply(net.norm(net.hidden(x)))),
        hidden=nn.Linear(4, 6),
        norm=nn.LayerNorm(6),
        out=nn.Linear(6, 3),
    )
    return model, draw.normal(5, 4), draw.integers(3, 5)


# --- label positions -------------------------------------------------------------------------


@case()
def token_labels(draw):
    model = nn.Sequential(
        nn.Embedding(9, 6, padding_idx=0), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5)
    )
    tokens = draw.integers(9, 6, 5)
    tokens[:, 0] = 0
    return model, tokens, with_ignored(draw.integers(5, 6, 5))


@case("bernoulli")
def token_labels_bernoulli(draw):
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))
    return model, draw.normal(5, 4, 4), with_ignored(draw.bits(5, 4, 3))


@case("bernoulli")
def missing_labels_bernoulli(draw):
    targets = draw.bits(6, 4)
    targets[0, 1:] = -100
    targets[2, 2] = -100
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), draw.normal(6, 5), targets


@case("gaussian")
def positions_gaussian(draw):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    return model, draw.normal(5, 3, 4), draw.normal(5, 3, 2)


# --- ways of calling -------------------------------------------------------------------------


@case()
def keyword_call_of_a_linear(draw):
    model = Net(
        lambda net, x: net.out(input=torch.tanh(net.hidden(input=x))),
        hidden=nn.Linear(5, 6),
        out=nn.Linear(6, 3),
    )
    return model, draw.normal(6, 5), draw.integers(3, 6)


@case()
def tuple_inputs(draw):
    model = Net(
        lambda net, x, tokens: net.out(torch.tanh(net.hidden(x) + net.embedding(tokens))),
        hidden=nn.Linear(5, 6),
        embedding=nn.Embedding(4, 6),
        out=nn.Linear(6, 3),
    )
    return model, (draw.normal(6, 5), draw.integers(4, 6)), draw.integers(3, 6)


@case()
def dict_inputs_and_output_object(draw):
    def rule(net, tokens, mask):
        hidden = torch.tanh(net.hidden(net.embedding(tokens))) * mask.unsqueeze(-1)
        return SimpleNamespace(loss=None, logits=net.out(hidden.sum(1)))

    model = Net(rule, embedding=nn.Embedding(7, 4), hidden=nn.Linear(4, 6), out=nn.Linear(6, 3))
    inputs = {"mask": draw.integers(2, 6, 4), "tokens": draw.integers(7, 6, 4)}
    inputs["mask"][:, 0] = 1
    return model, inputs, draw.integers(3, 6)
