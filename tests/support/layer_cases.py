"""Cases of convolutions, and what the cases of all layers with a rule share.

``FALLBACK`` names the parameters that no rule covers, ``UNVECTORIZED`` the cases that function
transforms cannot run; everything else is expected to go through the rules and through ``vmap``.
Embeddings and normalisations are in ``norm_cases``, layers in unusual company in
``layer_mixes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.table import CASES, Case, Draw, Net

FALLBACK: dict[str, set[str]] = {}
"""By case, the parameters whose per-sample gradients are formed."""
UNVECTORIZED: set[str] = set()
"""The cases that ``torch.func.vmap`` cannot run."""

Build = Callable[[Draw], tuple[nn.Module, Any, Tensor]]


def layer_case(fallback: Iterable[str] = (), vectorized: bool = True) -> Callable[[Build], Build]:
    """Add the function as a case under its own name.

    Args:
        fallback: the parameters that no rule covers.
        vectorized: whether ``vmap`` can run the model.
    """

    def add(build: Build) -> Build:
        add_case(build.__name__, build, fallback, vectorized)
        return build

    return add


def add_case(
    name: str, build: Build, fallback: Iterable[str] = (), vectorized: bool = True
) -> None:
    assert name not in CASES
    CASES[name] = Case(name, build, "categorical")
    FALLBACK[name] = set(fallback)
    if not vectorized:
        UNVECTORIZED.add(name)


def headed(features: list[nn.Module], inputs: Tensor) -> nn.Module:
    """The features, flattened, and a Linear to three classes."""
    body = nn.Sequential(*features, nn.Flatten()).double()
    body.append(nn.Linear(body(inputs).shape[1], 3))
    return body


def frozen(module: nn.Module, *names: str) -> nn.Module:
    """The module with these parameters frozen; all of them if none is named."""
    for name, parameter in module.named_parameters():
        if not names or name in names:
            parameter.requires_grad_(False)
    return module


# --- convolutions in every layout ------------------------------------------------------------

SPATIAL = {1: (7,), 2: (5, 4), 3: (3, 4, 3)}
CLASSES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

CONVOLUTIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "conv1d": (1, {"kernel_size": 3}),
    "conv1d_of_single_positions": (1, {"kernel_size": 1}),
    "conv1d_as_long_as_its_input": (1, {"kernel_size": 7}),
    "conv1d_without_bias": (1, {"kernel_size": 3, "bias": False}),
    "conv1d_stride": (1, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "conv1d_stride_that_leaves_inputs_out": (1, {"kernel_size": 2, "stride": 3}),
    "conv1d_padded_beyond_its_kernel": (1, {"kernel_size": 2, "padding": 3}),
    "conv1d_dilation": (1, {"kernel_size": 3, "dilation": 2, "padding": 2}),
    "conv1d_groups": (1, {"kernel_size": 3, "groups": 2}),
    "conv1d_depthwise": (1, {"kernel_size": 3, "groups": 4, "out_channels": 8}),
    "conv1d_same": (1, {"kernel_size": 3, "padding": "same"}),
    "conv1d_same_with_an_even_kernel": (1, {"kernel_size": 4, "padding": "same"}),
    "conv1d_valid": (1, {"kernel_size": 4, "padding": "valid", "stride": 2}),
    "conv1d_circular": (1, {"kernel_size": 3, "padding": 2, "padding_mode": "circular"}),
    "conv1d_reflect": (1, {"kernel_size": 4, "padding": "same", "padding_mode": "reflect"}),
    "conv2d_along_one_axis": (2, {"kernel_size": (3, 1), "padding": (1, 0)}),
    "conv2d_along_the_other_axis": (2, {"kernel_size": (1, 3), "stride": (2, 1)}),
    "conv2d_all_at_once": (
        2,
        {
            "kernel_size": (2, 3),
            "stride": (2, 1),
            "padding": (1, 2),
            "dilation": (1, 2),
            "groups": 2,
        },
    ),
    "conv2d_depthwise_stride": (
        2,
        {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 4, "bias": False},
    ),
    "conv2d_same": (2, {"kernel_size": (3, 5), "padding": "same", "groups": 2}),
    "conv2d_same_with_an_even_kernel": (2, {"kernel_size": (2, 3), "padding": "same"}),
    "conv2d_same_with_even_reach": (2, {"kernel_size": 2, "padding": "same", "dilation": 2}),
    "conv2d_circular_depthwise": (
        2,
        {"kernel_size": 3, "padding": (1, 2), "groups": 4, "padding_mode": "circular"},
    ),
    "conv2d_reflect": (2, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    "conv3d_along_one_axis": (3, {"kernel_size": (1, 1, 3), "padding": (0, 0, 1)}),
    "conv3d_all_at_once": (
        3,
        {
            "kernel_size": (1, 2, 3),
            "stride": (2, 1, 2),
            "padding": (0, 1, 1),
            "dilation": (1, 2, 1),
            "groups": 2,
        },
    ),
    "conv3d_depthwise": (3, {"kernel_size": 2, "groups": 4, "padding": "valid"}),
    "conv3d_same": (3, {"kernel_size": (3, 1, 3), "padding": "same", "bias": False}),
    "conv3d_circular": (3, {"kernel_size": 2, "padding": 1, "padding_mode": "circular"}),
}
UNEVEN = ("conv1d_same_with_an_even_kernel", "conv2d_same_with_an_even_kernel")


def convolution(dims: int, options: dict[str, Any]) -> Build:
    """A convolution behind another one, so that gradients flow through it too."""

    def build(draw: Draw) -> tuple[nn.Module, Tensor, Tensor]:
        inputs = draw.normal(4, 2, *SPATIAL[dims])
        layers = [CLASSES[dims](2, 4, 1), nn.Tanh()]
        layers += [CLASSES[dims](4, **{"out_channels": 4, **options}), nn.Tanh()]
        return headed(layers, inputs), inputs, draw.integers(3, 4)

    return build


for _name, (_dims, _options) in CONVOLUTIONS.items():
    _fallback = ("2.weight", "2.bias") if _name in UNEVEN else ()
    add_case(_name, convolution(_dims, _options), _fallback)


@layer_case()
def convolution_used_twice(draw):
    """Once more on outputs of half the length: other positions, the same weight."""

    def rule(net, x):
        once = torch.tanh(net.conv(x))
        return net.out(torch.cat([once, torch.tanh(net.conv(once[..., ::2]))], 2).flatten(1))

    return (
        Net(rule, conv=nn.Conv1d(2, 2, 3, padding=1), out=nn.Linear(18, 3)),
        draw.normal(4, 2, 6),
        draw.integers(3, 4),
    )


@layer_case()
def convolution_used_with_two_layouts(draw):
    def rule(net, x):
        conv = net.conv
        near = F.conv1d(x, conv.weight, conv.bias, padding=1)
        far = F.conv1d(torch.tanh(near), conv.weight, conv.bias, stride=2, dilation=2)
        return net.out(torch.tanh(torch.cat([near, far], 2)).flatten(1))

    return (
        Net(rule, conv=nn.Conv1d(2, 2, 3), out=nn.Linear(14, 3)),
        draw.normal(4, 2, 6),
        draw.integers(3, 4),
    )


@layer_case(fallback=["weight"])
def convolution_used_with_two_groupings(draw):
    def rule(net, x):
        split = F.conv1d(x, net.weight, groups=2)
        whole = F.conv1d(x[:, :1], net.weight)
        return net.out(torch.tanh(split * whole).flatten(1))

    return (
        Net(rule, weight=nn.Parameter(torch.zeros(4, 1, 3)), out=nn.Linear(16, 3)),
        draw.normal(4, 2, 6),
        draw.integers(3, 4),
    )


@layer_case()
def convolution_with_frozen_weight(draw):
    inputs = draw.normal(4, 2, 6)
    conv = frozen(nn.Conv1d(3, 2, 3, padding=1), "weight")
    return (
        headed([nn.Conv1d(2, 3, 1), nn.Tanh(), conv, nn.Tanh()], inputs),
        inputs,
        draw.integers(3, 4),
    )


@layer_case()
def convolution_with_frozen_bias(draw):
    inputs = draw.normal(4, 2, 6)
    conv = frozen(nn.Conv1d(3, 2, 3, padding=1), "bias")
    return (
        headed([nn.Conv1d(2, 3, 1), nn.Tanh(), conv, nn.Tanh()], inputs),
        inputs,
        draw.integers(3, 4),
    )


@layer_case()
def first_convolution_with_frozen_weight(draw):
    inputs = draw.normal(4, 2, 4, 4)
    conv = frozen(nn.Conv2d(2, 3, 3), "weight")
    return headed([conv, nn.Tanh(), nn.Conv2d(3, 2, 1)], inputs), inputs, draw.integers(3, 4)


@layer_case()
def convolutions_before_inplace_activations(draw):
    inputs = draw.normal(4, 2, 4, 4)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 2)]
    layers += [nn.GroupNorm(2, 4), nn.SiLU(inplace=True), nn.Conv2d(4, 2, 1)]
    return headed([*layers, nn.ReLU(inplace=True)], inputs), inputs, draw.integers(3, 4)


@layer_case()
def channels_last(draw):
    inputs = draw.normal(4, 3, 5, 4).contiguous(memory_format=torch.channels_last)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU()]
    layers += [nn.Conv2d(4, 4, 2, groups=2, stride=2), nn.GroupNorm(4, 4), nn.Tanh()]
    model = headed(layers, inputs).to(memory_format=torch.channels_last)
    return model, inputs, draw.integers(3, 4)


@layer_case()
def channels_last_in_three_dimensions(draw):
    inputs = draw.normal(4, 2, 3, 3, 2).contiguous(memory_format=torch.channels_last_3d)
    layers = [nn.Conv3d(2, 3, 2, padding=1), nn.GroupNorm(1, 3), nn.Tanh()]
    return headed(layers, inputs), inputs, draw.integers(3, 4)


@layer_case()
def convolution_of_strided_views(draw):
    """Inputs that are transposed, sliced and expanded, none of them contiguous."""

    def rule(net, x):
        once = net.first(x.transpose(1, 2)[..., ::2])
        return net.out(torch.tanh(net.second(once[:, 1:2].expand(-1, 3, -1))).flatten(1))

    model = Net(rule, first=nn.Conv1d(2, 3, 2), second=nn.Conv1d(3, 2, 2), out=nn.Linear(4, 3))
    return model, draw.normal(4, 8, 2), draw.integers(3, 4)


@layer_case()
def convolutions_called_with_keywords(draw):
    def rule(net, x):
        a, b = net.first, net.second
        once = F.conv2d(weight=a.weight, input=x, stride=(2,), padding=[1, 0], bias=a.bias)
        once = F.group_norm(num_groups=2, input=once, bias=net.norm.bias, weight=net.norm.weight)
        twice = torch.conv2d(torch.tanh(once), b.weight, b.bias, 1, "same", (1, 1), 2)
        return net.out(torch.tanh(twice).flatten(1))

    model = Net(
        rule,
        first=nn.Conv2d(2, 4, (3, 2)),
        norm=nn.GroupNorm(2, 4),
        second=nn.Conv2d(4, 4, 3, groups=2),
        out=nn.Linear(24, 3),
    )
    return model, draw.normal(4, 2, 5, 4), draw.integers(3, 4)


@layer_case(fallback=["0.weight", "0.bias"])
def transposed_convolution(draw):
    inputs = draw.normal(4, 2, 4)
    layers = [nn.ConvTranspose1d(2, 3, 3, stride=2), nn.Tanh(), nn.Conv1d(3, 2, 3)]
    return headed(layers, inputs), inputs, draw.integers(3, 4)


@layer_case(fallback=["conv.weight", "conv.bias", "norm.weight", "norm.bias"])
def convolution_over_frames(draw):
    """Frames are flattened into axis 0, which is longer than the batch there."""

    def rule(net, x):
        frames = torch.tanh(net.norm(net.conv(x.flatten(0, 1))))
        return net.out(frames.unflatten(0, x.shape[:2]).mean(1).flatten(1))

    model = Net(rule, conv=nn.Conv1d(2, 4, 3), norm=nn.GroupNorm(2, 4), out=nn.Linear(12, 3))
    return model, draw.normal(4, 3, 2, 5), draw.integers(3, 4)


@layer_case()
def convolution_of_one_sample(draw):
    inputs = draw.normal(1, 2, 5)
    return headed([nn.Conv1d(2, 3, 3), nn.LayerNorm(3)], inputs), inputs, draw.integers(3, 1)
