"""Where methods are registered, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.registry import Registry
from evalkit.updates.types import Update

Method = Callable[..., Tensor | Update]
Check = Callable[[str, Mapping[str, Any]], None]
_METHODS: Registry[Method] = Registry("method", extended=True)
_CHECKS: dict[str, Check] = {}
_DAMPED: set[str] = set()
_INPUTS = ("seed", "on_iteration", "others", "past", "optimizer")
"""Parameters of methods that a run gives, and no user."""


def method(
    name: str, check: Check | None = None, damped: bool = False
) -> Callable[[Method], Method]:
    """Register a method: a function of (linearization, damping) that returns a direction.

    The function returns d, (P,), with the sign of the gradient, or an update of one of the kinds of
    :mod:`evalkit.updates.types`. Its further parameters are its settings and need defaults; one
    called ``seed`` receives the seed, one called ``on_iteration`` a function to call with each
    iteration and its gamma, one called ``others`` what the run makes of parameters without
    factors (:data:`evalkit.settings.Others`), and one called ``past`` the past tasks of the run
    (:class:`evalkit.curvature.PastTask`), and one called ``optimizer`` that of the training;
    without these the method is refused.

    Args:
        name: how it is called from then on.
        check: refuses settings that do not go together, before anything is computed: a function of
            the name and of all settings, those that are left out with their defaults.
        damped: it is nothing without damping, and a damping of 0 is refused.

    Raises:
        EvalkitError: the name is taken, or holds a character that separates names or settings, or
            the function cannot be called with a linearization and a damping alone.
    """
    if not name or set(name) & set(":,= "):
        raise EvalkitError(
            f"expected a method name without ':', ',', '=' and spaces, found '{name}'; rename it"
        )

    def register(function: Method) -> Method:
        _check_callable(name, function)
        _METHODS.add(name, function)
        if check is not None:
            _CHECKS[name] = check
        if damped:
            _DAMPED.add(name)
        return function

    return register


def _check_callable(name: str, function: Method) -> None:
    """Refuse a function that a linearization and a damping do not suffice for.

    Raises:
        EvalkitError: they do not.
    """
    signature, called = inspect.signature(function), getattr(function, "__name__", "it")
    inputs = {key: None for key in _INPUTS if key in signature.parameters}
    try:
        signature.bind(None, None, **inputs)
    except TypeError as error:
        raise EvalkitError(
            f"expected the function of method '{name}' to take a linearization and a damping, and "
            f"settings with defaults, found {called}{signature}; write it as "
            f"{called}(lin, damping)"
        ) from error


def methods() -> tuple[str, ...]:
    """Return the names of all registered methods."""
    return _METHODS.names()


def registered(name: str) -> Method:
    """Return the function of a method by its name alone, settings left aside.

    Raises:
        EvalkitError: there is no such method; the sentence names the nearest.
    """
    return _METHODS.get(name)


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings of a method that do not go together.

    Args:
        name: of the method.
        settings: all of them.

    Raises:
        EvalkitError: they do not.
    """
    if name in _CHECKS:
        _CHECKS[name](name, settings)


def check_dampings(name: str, dampings: Iterable[float]) -> None:
    """Refuse a damping of 0 for a method that is nothing without one.

    Args:
        name: of the method, settings left aside.
        dampings: at which it is to be scored.

    Raises:
        EvalkitError: one is 0.
    """
    if name in _DAMPED and not all(dampings):
        raise EvalkitError(
            f"expected a damping above 0 for method '{name}', which has no direction "
            "without one, found 0; raise the damping or leave the method out"
        )


def takes_past(name: str) -> bool:
    """Return whether a method has past tasks as an input.

    Args:
        name: of the method, settings left aside.
    """
    return "past" in inspect.signature(registered(name)).parameters


def takes_optimizer(name: str) -> bool:
    """Return whether a method has the optimizer of a training as an input.

    Args:
        name: of the method, settings left aside.
    """
    return "optimizer" in inspect.signature(registered(name)).parameters


def takes_batch_alone(name: str) -> bool:
    """Return whether a method needs nothing beside a model and a batch.

    Args:
        name: of the method, settings left aside.
    """
    return not takes_past(name) and not takes_optimizer(name)


def no_optimizer(name: str) -> EvalkitError:
    """Return the error of a method that has an optimizer as an input, where there is none."""
    return EvalkitError(
        f"expected the optimizer of the training for method '{name}', found none; give `optimizer` "
        "where scores are asked for, or leave the method out"
    )


def no_past(name: str) -> EvalkitError:
    """Return the error of a method that has past tasks as an input, where there are none."""
    return EvalkitError(
        f"expected past tasks for method '{name}', found none; give `past` where scores are asked "
        "for, or leave the method out"
    )
