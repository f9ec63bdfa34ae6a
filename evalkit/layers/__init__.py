"""Layers that are linear in their parameters, recognised by the torch function that they call."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from evalkit.layers.base import Layer, MovedLayer, WeightCalls, weight_calls
from evalkit.layers.convolution import CONVOLUTIONS
from evalkit.layers.embedding import embedding
from evalkit.layers.linear import linear
from evalkit.layers.normalization import group_norm, layer_norm

LAYERS: dict[Callable[..., Tensor], Callable[..., Layer | None]] = {
    functional.linear: linear,
    functional.embedding: embedding,
    # Models call either name; the outer one is seen, not what it calls in turn.
    functional.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    functional.group_norm: group_norm,
    torch.group_norm: group_norm,
    **CONVOLUTIONS,
}
"""What makes a layer of the arguments of each torch function; None where no rule applies."""

__all__ = ["LAYERS", "Layer", "MovedLayer", "WeightCalls", "weight_calls"]
