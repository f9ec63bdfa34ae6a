"""Optimizers by name: each builder returns a torch optimizer for the mean loss of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from evalkit.extras import required
from evalkit.registry import Registry

Builder = Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer]
"""(parameters, learning_rate, weight_decay) -> optimizer."""

_REGISTRY: Registry[Builder] = Registry("optimizer")

get = _REGISTRY.get
names = _REGISTRY.names


def optimizer(name: str) -> Callable[[Builder], Builder]:
    """Register the decorated builder as the optimizer called ``name``."""

    def add(builder: Builder) -> Builder:
        _REGISTRY.add(name, builder)
        return builder

    return add


@optimizer("sgd")
def sgd(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Stochastic gradient descent without momentum; weight decay is added to the gradient."""
    return torch.optim.SGD(parameters, lr=learning_rate, weight_decay=weight_decay)


@optimizer("adam")
def adam(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba, arXiv 1412.6980); weight decay is added to the gradient."""
    return torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay)


@optimizer("adamw")
def adamw(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)


@optimizer("adafactor")
def adafactor(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adafactor (Shazeer and Stern, arXiv 1804.04235) without parameter scaling or warm-up.

    Raises:
        EvalkitError: transformers, which it is taken from, is not installed.
    """
    transformers = required("transformers", "the optimizer 'adafactor'")
    made: torch.optim.Optimizer = transformers.Adafactor(
        parameters,
        lr=learning_rate,
        weight_decay=weight_decay,
        decay_rate=-0.8,
        scale_parameter=False,
        relative_step=False,
    )
    return made
