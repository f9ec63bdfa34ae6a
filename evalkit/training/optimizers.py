"""Optimizers by name: each builder returns a torch optimizer for the mean loss of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from evalkit.errors import EvalkitError
from evalkit.extras import required
from evalkit.given_settings import defaults_of
from evalkit.registry import Registry
from evalkit.settings import check_damping
from evalkit.training.muon import MuonWithAdamW, hidden_matrices

Builder = Callable[..., torch.optim.Optimizer]
"""(parameters, learning_rate, weight_decay, settings) -> optimizer.

Its further parameters are those of :data:`OPTIONS` that it has, each with a default, and those of
:data:`GIVEN` that it wants to know.
"""
OPTIONS = ("damping", "momentum", "normalise")
"""Settings that only some optimizers have."""
GIVEN = ("model", "likelihood", "seed")
"""What a builder is given where it has a parameter of that name: the model that is trained, what
its outputs mean, and the seed of the training."""

_REGISTRY: Registry[Builder] = Registry("optimizer")

get = _REGISTRY.get
names = _REGISTRY.names


def optimizer(name: str) -> Callable[[Builder], Builder]:
    """Register the decorated builder as the optimizer called ``name``."""

    def add(builder: Builder) -> Builder:
        _REGISTRY.add(name, builder)
        return builder

    return add


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse settings that an optimizer does not have, and values out of range.

    Args:
        name: of the optimizer.
        options: by the names of :data:`OPTIONS`; None where one is not given.

    Raises:
        EvalkitError: there is no such optimizer, it lacks a setting, or a value is out of range.
    """
    known = defaults_of(get(name))
    for option, value in options.items():
        if value is None:
            continue
        if option not in known:
            having = [other for other in names() if option in defaults_of(get(other))]
            raise EvalkitError(
                f"expected no {option} for the optimizer '{name}', which has none, found "
                f"{value!r}; leave out `{option}`, or choose one that has it: {', '.join(having)}"
            )
        if option == "damping":
            check_damping(value)
        elif option == "momentum" and not (_is_number(value) and 0 <= value < 1):
            raise EvalkitError(
                f"expected a momentum from 0 to below 1, found {value!r}; pass one such as 0.9"
            )
        elif option == "normalise" and not isinstance(value, bool):
            raise EvalkitError(f"expected `normalise` to be True or False, found {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def settings_of(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with which an optimizer is built, its own defaults filled in.

    Args:
        name: of the optimizer.
        given: ``learning_rate``, ``weight_decay``, those of :data:`OPTIONS` and of :data:`GIVEN`;
            what the builder has no parameter for, and what is None, is left out.

    Returns:
        Numbers, texts and flags by name, which :func:`build` takes.
    """
    known = list(defaults_of(get(name)).items())[3:]
    wanted = {key: default for key, default in known if key != "model"}
    wanted |= {key: given[key] for key in wanted if given.get(key) is not None}
    fixed = {key: given[key] for key in ("learning_rate", "weight_decay")}
    return {**fixed, **wanted}


def build(name: str, model: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return a new optimizer of the parameters of a model that are trained.

    Args:
        name: of the optimizer.
        model: whose parameters with ``requires_grad`` it takes, in their order.
        settings: all of them, as :func:`settings_of` returns them.

    Raises:
        EvalkitError: there is no such optimizer, or it does not fit the model.
    """
    builder = get(name)
    rest = dict(settings)
    learning_rate, weight_decay = rest.pop("learning_rate"), rest.pop("weight_decay")
    if "model" in defaults_of(builder):
        rest["model"] = model
    return builder(
        (parameter for parameter in model.parameters() if parameter.requires_grad),
        learning_rate,
        weight_decay,
        **rest,
    )


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
