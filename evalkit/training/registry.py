"""Where optimizers are registered, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from evalkit.registry import Registry

Builder = Callable[..., torch.optim.Optimizer]
"""(parameters, learning_rate, weight_decay, settings) -> optimizer, for the mean loss of a batch.

Its further parameters are the settings of :data:`evalkit.training.optimizers.DEFAULTS` that it has,
with defaults of its own; one with ``**settings`` has all of them. One called ``model`` receives the
model that is trained.
"""

REGISTRY: Registry[Builder] = Registry("optimizer", extended=True)
ON_OUTPUTS: set[str] = set()
"""Those whose step takes the outputs of the model."""

names = REGISTRY.names


def optimizer(name: str, on_outputs: bool = False) -> Callable[[Builder], Builder]:
    """Register the decorated builder as the optimizer called ``name``.

    Args:
        name: how it is called from then on.
        on_outputs: whether its step takes a closure that returns (logits, targets), as those of
            :mod:`evalkit.optim` do, rather than gradients of the mean loss.
    """

    def add(builder: Builder) -> Builder:
        REGISTRY.add(name, builder)
        if on_outputs:
            ON_OUTPUTS.add(name)
        return builder

    return add
