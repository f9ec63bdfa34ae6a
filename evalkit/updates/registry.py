"""Where methods are registered, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.registry import Registry
from evalkit.updates.types import Update

Method = Callable[..., Tensor | Update]
_METHODS: Registry[Method] = Registry("method")


def method(name: str) -> Callable[[Method], Method]:
    """Register a method: a function of (linearization, damping) that returns a direction.

    The function returns d, (P,), with the sign of the gradient, or an update of one of the kinds of
    :mod:`evalkit.updates.types`. Its further parameters are its settings and need defaults; one
    called ``seed`` receives the seed, and one called ``on_iteration`` a function to call with each
    iteration and its gamma.

    Args:
        name: how it is called from then on.

    Raises:
        EvalkitError: the name is taken, or holds a character that separates names or settings.
    """
    if not name or set(name) & set(":,= "):
        raise EvalkitError(
            f"expected a method name without ':', ',', '=' and spaces, found '{name}'; rename it"
        )

    def register(function: Method) -> Method:
        _METHODS.add(name, function)
        return function

    return register


def methods() -> tuple[str, ...]:
    """Return the names of all registered methods."""
    return _METHODS.names()


def registered(name: str) -> Method:
    """Return the function of a method by its name alone, settings left aside.

    Raises:
        EvalkitError: there is no such method; the sentence names the nearest.
    """
    return _METHODS.get(name)
