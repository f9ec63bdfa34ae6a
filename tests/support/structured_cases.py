"""The cases that structured approximations are compared with dense blocks on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.cases import CASES, Batch, Draw, Net
from tests.support.table import initialise

NAMES = [
    "mlp_categorical",
    "mlp_bernoulli",
    "mlp_gaussian",
    "scalar_logit",
    "one_sample",
    "convolution_group_norm",
    "conv1d_groups",
    "conv2d_all_at_once",
    "conv2d_depthwise_stride",
    "low_rank_adapter",
    "module_used_twice",
    "module_used_twice_once_without_gradient",
    "embedding_tied_by_attribute",
    "halves_of_layers_used_elsewhere",
    "frozen_parameters",
    "convolution_with_frozen_weight",
    "without_bias",
    "unused_parameters",
    "duplicate_samples",
    "token_labels",
    "missing_labels_bernoulli",
    "positions_gaussian",
    "attention_function_with_token_labels",
    "attention_module",
    "least_squares_more_samples_than_parameters",
]


def two_modules_with_one_weight() -> Batch:
    draw = Draw(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    model[2].weight, model[2].bias = model[0].weight, model[0].bias
    initialise(model.double(), draw)
    return Batch(model, draw.normal(6, 5), draw.integers(3, 6), "categorical")


def weight_with_and_without_its_bias() -> Batch:
    draw = Draw(0)
    model = Net(
        lambda net, x: net.out(torch.tanh(F.linear(torch.tanh(net.hidden(x)), net.hidden.weight))),
        hidden=nn.Linear(5, 5),
        out=nn.Linear(5, 3),
    )
    initialise(model.double(), draw)
    return Batch(model, draw.normal(6, 5), draw.integers(3, 6), "categorical")


MADE = {
    **{name: CASES[name].make for name in NAMES},
    "two_modules_with_one_weight": two_modules_with_one_weight,
    "weight_with_and_without_its_bias": weight_with_and_without_its_bias,
}


def near(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-8) -> bool:
    return float((found - wanted).norm()) <= tolerance * float(wanted.norm())
