"""The optimizers that evalkit has: a builder each, of torch, of transformers, and its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from evalkit.extras import required
from evalkit.training.muon import MuonWithAdamW, hidden_matrices
from evalkit.training.registry import optimizer


@optimizer("sgd")
def sgd(
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.0,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent, with momentum if wanted; weight decay adds to the gradient."""
    return torch.optim.SGD(
        parameters, lr=learning_rate, weight_decay=weight_decay, momentum=momentum
    )


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


@optimizer("muon")
def muon(
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.95,
    *,
    model: nn.Module,
) -> torch.optim.Optimizer:
    """Muon for the matrices of hidden layers, AdamW for embeddings, output layer and the rest.

    The step of Muon (Jordan et al., 2024) is scaled such that both take the learning rate of
    AdamW; the momentum is Muon's. See :class:`evalkit.training.muon.MuonWithAdamW`.

    Raises:
        EvalkitError: the model trains no matrix of a hidden layer.
    """
    matrices, others = hidden_matrices(parameters, model)
    return MuonWithAdamW(matrices, others, learning_rate, weight_decay, momentum)


@optimizer("ief", on_outputs=True)
def ief(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, **settings: Any
) -> torch.optim.Optimizer:
    """Exact iEF: lowers the loss of sample n by its share |r_n|^2, to first order."""
    return _own("IEF", parameters, learning_rate, weight_decay, settings)


@optimizer("ef", on_outputs=True)
def ef(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, **settings: Any
) -> torch.optim.Optimizer:
    """Exact EF: lowers the losses of all samples alike; the paper normalises it."""
    return _own("EF", parameters, learning_rate, weight_decay, settings)


@optimizer("sf", on_outputs=True)
def sf(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, **settings: Any
) -> torch.optim.Optimizer:
    """Exact SF: the Fisher matrix of labels that the model draws; the paper normalises it.

    The seed of the training and the number of the step give the labels.
    """
    return _own("SF", parameters, learning_rate, weight_decay, settings)


@optimizer("fgn", on_outputs=True)
def fgn(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, **settings: Any
) -> torch.optim.Optimizer:
    """FGN: lowers the loss of sample n by f_n; natural-gradient descent where one output counts."""
    return _own("FGN", parameters, learning_rate, weight_decay, settings)


@optimizer("polyak", on_outputs=True)
def polyak(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, **settings: Any
) -> torch.optim.Optimizer:
    """A Polyak step for every sample at once: lowers the loss of sample n by its share l_n."""
    return _own("Polyak", parameters, learning_rate, weight_decay, settings)


def by_method(
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    *,
    method: str,
    **settings: Any,
) -> torch.optim.Optimizer:
    """The direction of a method as the step: as slow as the method is, every step."""
    return _own(
        "Preconditioned", parameters, learning_rate, weight_decay, {"method": method, **settings}
    )


def _own(
    name: str,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    settings: dict[str, Any],
) -> torch.optim.Optimizer:
    from evalkit import optim  # only who trains with one waits for it

    make = getattr(optim, name)
    made: torch.optim.Optimizer = make(
        parameters, lr=learning_rate, weight_decay=weight_decay, **settings
    )
    return made
