"""Models with values that every sample gets alike, and one that only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layer_cases import layer_case
from tests.support.table import Draw, Net


def pooled(
    draw: Draw,
    mix: Callable[[Any, Tensor], Tensor],
    samples: int = 6,
    **parts: tuple[int, ...] | nn.Module,
) -> tuple[nn.Module, Tensor, Tensor]:
    """Values (N, 4, 5) mixed with parameters of these shapes, through tanh and a mean."""
    built = {
        name: part if isinstance(part, nn.Module) else nn.Parameter(draw.normal(*part))
        for name, part in parts.items()
    }
    model = Net(
        lambda net, x: net.out(torch.tanh(mix(net, x)).mean(1)), out=nn.Linear(5, 3), **built
    )
    return model, draw.normal(samples, 4, 5), draw.integers(3, samples)


@layer_case()
def prompt_by_repeat(draw):
    def mix(net, x):
        return torch.cat([net.prompt.repeat(len(x), 1, 1), x], 1).cumsum(1)

    return pooled(draw, mix, prompt=(1, 2, 5))


@layer_case()
def prompt_by_expand_through_a_layer(draw):
    def mix(net, x):
        made = F.linear(torch.tanh(net.prompt), net.weight)
        return torch.cat([made.expand(len(x), -1, -1), x], 1).cumsum(1)

    return pooled(draw, mix, prompt=(2, 5), weight=(5, 5))


@layer_case()
def positions_added(draw):
    return pooled(draw, lambda net, x: net.positions + x, positions=(1, 4, 5))


@layer_case()
def positions_added_in_place_and_once_more(draw):
    def mix(net, x):
        total = x * 1.0
        total += net.positions
        return torch.tanh(total) - net.positions[0]

    return pooled(draw, mix, positions=(1, 4, 5))


@layer_case()
def as_many_positions_as_samples(draw):
    def mix(net, x):
        return (x + net.positions) * net.scale

    return pooled(draw, mix, samples=4, positions=(4, 5), scale=(5,))


@layer_case()
def scale_of_features_and_a_number(draw):
    return pooled(draw, lambda net, x: net.scale * x / net.number, scale=(5,), number=(1,))


@layer_case(fallback=["scale"])
def broadcast_beside_another_use(draw):
    def mix(net, x):
        return net.scale * x + torch.einsum("ntc,c->nt", x, net.scale)[..., None]

    return pooled(draw, mix, scale=(5,))


@layer_case()
def relative_positions(draw):
    """Attention with a bias looked up by distance, which is added for every sample."""
    distance = torch.arange(4)[:, None] - torch.arange(4) + 3

    def mix(net, x):
        bias = net.table(distance.to(x.device)).permute(2, 0, 1).unsqueeze(0)
        heads = x[:, None].expand(-1, 2, -1, -1)
        return (((heads @ heads.mT) + bias).softmax(-1) @ heads).sum(1)

    return pooled(draw, mix, table=nn.Embedding(7, 2))
