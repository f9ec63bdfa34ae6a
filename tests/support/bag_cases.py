"""Cases of bags of embeddings; the reference runs torch's own operator, whose value they have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.layer_cases import headed, layer_case
from tests.support.table import Net


@layer_case()
def bag_of_sums(draw):
    """Several samples share an index, and a bag holds one twice."""
    inputs = draw.integers(5, 6, 4)
    return (
        headed([nn.EmbeddingBag(5, 4, mode="sum"), nn.Tanh()], inputs),
        inputs,
        draw.integers(3, 6),
    )


@layer_case()
def bag_of_means_with_padding(draw):
    inputs = draw.integers(6, 5, 4)
    inputs[:, 0], inputs[3] = 2, 2  # sample 3 is an empty bag
    layers = [nn.EmbeddingBag(6, 3, mode="mean", padding_idx=2), nn.Linear(3, 4), nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 5)


@layer_case()
def bag_of_largest_values(draw):
    inputs = draw.integers(6, 5, 4)
    inputs[2] = 5
    layers = [nn.EmbeddingBag(6, 3, mode="max", padding_idx=-1), nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 5)


@layer_case()
def bag_with_weights(draw):
    model = Net(
        lambda net, x, w: net.out(torch.tanh(net.bag(x, per_sample_weights=w))),
        bag=nn.EmbeddingBag(6, 4, mode="sum"),
        out=nn.Linear(4, 3),
    )
    return model, (draw.integers(6, 5, 3), draw.normal(5, 3)), draw.integers(3, 5)


@layer_case()
def bag_with_learnt_weights(draw):
    """Attention over the lookups: weights from a table of their own, normalised in each bag."""

    def rule(net, x):
        weights = net.score(x).squeeze(-1).softmax(1)
        return net.out(
            torch.tanh(F.embedding_bag(x, net.table, per_sample_weights=weights, mode="sum"))
        )

    model = Net(
        rule,
        table=nn.Parameter(torch.zeros(6, 4)),
        score=nn.Embedding(6, 1),
        out=nn.Linear(4, 3),
    )
    return model, draw.integers(6, 5, 3), draw.integers(3, 5)


@layer_case(vectorized=False)
def bags_one_after_the_other(draw):
    """Bags of 3, 0, 2, 1 and 4 lookups."""
    model = Net(
        lambda net, x, offsets: net.out(torch.tanh(net.bag(x, offsets))),
        bag=nn.EmbeddingBag(6, 4, padding_idx=0),
        out=nn.Linear(4, 3),
    )
    return model, (draw.integers(6, 10), torch.tensor([0, 3, 3, 5, 6])), draw.integers(3, 5)


@layer_case(vectorized=False)
def bags_with_weights_and_a_last_offset(draw):
    def rule(net, x, weights, offsets):
        ends = torch.cat([offsets, offsets.new_tensor([len(x)])])
        return net.out(torch.tanh(net.bag(x, ends, weights)))

    model = Net(
        rule,
        bag=nn.EmbeddingBag(6, 4, mode="sum", include_last_offset=True),
        out=nn.Linear(4, 3),
    )
    inputs = (draw.integers(6, 10), draw.normal(10), torch.tensor([0, 3, 3, 5, 6]))
    return model, inputs, draw.integers(3, 5)


@layer_case(fallback=["0.weight"], vectorized=False)
def bag_with_largest_norm(draw):
    inputs = draw.integers(6, 5, 3)
    layers = [nn.EmbeddingBag(6, 4, mode="sum", max_norm=0.7), nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 5)


@layer_case()
def bag_and_embedding_of_one_table(draw):
    def rule(net, x):
        first = F.embedding_bag(x, net.table, mode="mean")
        return net.out(torch.tanh(first * F.embedding(x[:, 0], net.table)))

    table = nn.Parameter(torch.zeros(5, 4))
    return Net(rule, table=table, out=nn.Linear(4, 3)), draw.integers(5, 6, 3), draw.integers(3, 6)
