"""Optimizers by name, or by that of a method whose direction is the step, and their settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from evalkit.errors import EvalkitError
from evalkit.given_settings import defaults_of
from evalkit.names import base_name
from evalkit.registry import suggest, unknown
from evalkit.settings import (
    DEFAULT_DAMPING,
    check_damping,
    check_momentum,
    check_normalise,
    check_on_failure,
)
from evalkit.training.builders import by_method
from evalkit.training.registry import ON_OUTPUTS, REGISTRY, Builder, names, optimizer

__all__ = [
    "DEFAULTS",
    "OPTIONS",
    "Builder",
    "build",
    "check_options",
    "get",
    "names",
    "optimizer",
    "settings_of",
    "steps_on_outputs",
]

DEFAULTS: dict[str, Any] = {
    "damping": DEFAULT_DAMPING,
    "momentum": 0.0,
    "normalise": False,
    "on_failure": "raise",
    "likelihood": "categorical",
    "seed": 0,
}
"""The settings that a builder may have, and their defaults where it has none of its own."""
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "damping": check_damping,
    "momentum": check_momentum,
    "normalise": check_normalise,
    "on_failure": check_on_failure,
}
OPTIONS = tuple(_CHECKS)
"""Those that the caller sets; the others are of the task and the training."""


def get(text: str) -> Builder:
    """Return the builder of an optimizer.

    Args:
        text: a registered name, or a method, with settings if wanted, whose direction is the step.

    Raises:
        EvalkitError: there is neither, or the method has no such settings; near names are
            suggested.
    """
    if text in REGISTRY:
        return REGISTRY.get(text)
    from evalkit.updates import methods  # only who trains with one waits for them
    from evalkit.updates.parser import parse

    if base_name(str(text)) not in methods():
        near = suggest(str(text), {*names(), *methods()})
        raise unknown("optimizer", str(text), near, REGISTRY.extended)
    parse(text)
    return partial(by_method, method=text)


def steps_on_outputs(text: str) -> bool:
    """Return whether the step of an optimizer takes a closure that returns (logits, targets)."""
    return text in ON_OUTPUTS or text not in REGISTRY


def _settings(builder: Builder) -> dict[str, Any]:
    """Return the settings that a builder has, with their defaults."""
    given = inspect.signature(builder).parameters.values()
    has_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in given)
    own = {key: value for key, value in defaults_of(builder).items() if key in DEFAULTS}
    return {**DEFAULTS, **own} if has_all else own


def check_options(text: str, options: Mapping[str, Any]) -> None:
    """Refuse settings that an optimizer does not have, and values out of range.

    Args:
        text: the optimizer.
        options: by the names of :data:`OPTIONS`; None where one is not given.

    Raises:
        EvalkitError: there is no such optimizer, it lacks a setting, or a value is out of range.
    """
    known = _settings(get(text))
    for option, value in options.items():
        if value is None:
            continue
        if option not in known:
            having = [other for other in names() if option in _settings(get(other))]
            raise EvalkitError(
                f"expected no {option} for the optimizer '{text}', which has none, found "
                f"{value!r}; leave out `{option}`, or choose one that has it: {', '.join(having)}"
            )
        _CHECKS[option](value)


def settings_of(text: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with which an optimizer is built, its own defaults filled in.

    Args:
        text: the optimizer.
        given: ``learning_rate``, ``weight_decay`` and those of :data:`DEFAULTS`; what the builder
            does not have, and what is None, is left out.

    Returns:
        Numbers, texts and flags by name, which :func:`build` takes.
    """
    fixed = {key: given[key] for key in ("learning_rate", "weight_decay")}
    wanted = _settings(get(text))
    return {
        **fixed,
        **{key: v if given.get(key) is None else given[key] for key, v in wanted.items()},
    }


def build(text: str, model: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return a new optimizer of the parameters of a model that are trained.

    Args:
        text: a registered name, or a method.
        model: whose parameters with ``requires_grad`` it takes, in their order.
        settings: as :func:`settings_of` returns them.

    Raises:
        EvalkitError: there is no such optimizer, or it does not fit the model.
    """
    builder = get(text)
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
