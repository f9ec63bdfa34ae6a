"""Settings of functions: parameters with defaults, given as values or as the text of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from evalkit.errors import EvalkitError, shortened
from evalkit.registry import suggest

_EXPECTED = {bool: "true or false", int: "an integer", float: "a number"}
_FLAGS = {"true": True, "false": False}


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters of a function with their defaults."""
    parameters = inspect.signature(function).parameters
    return {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def fitted(owner: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in the types of their defaults.

    Args:
        owner: whose settings they are, as sentences call it.
        values: as values or as the text of them.
        defaults: the defaults of all settings that there are.

    Raises:
        EvalkitError: there is no such setting, or a value does not fit.
    """
    for key in values:
        if key not in defaults:
            hint = suggest(key, defaults) if defaults else "it has none: leave them out"
            raise EvalkitError(f"{owner}: unknown setting '{key}'; {hint}")
    return {key: _fitted(owner, key, value, defaults[key]) for key, value in values.items()}


def _fitted(owner: str, key: str, value: Any, default: Any) -> Any:
    kind, found = type(default), shortened(repr(value))
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if kind not in (str, int, float, bool):
        raise EvalkitError(
            f"{owner}: expected a default that is text or a number for the setting '{key}', "
            f"found {default!r}; give it one in that function, or leave the setting out"
        )
    advice = f"pass one such as {key}={str(default).lower()}"
    text = str(value)
    try:
        converted = _FLAGS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise EvalkitError(
            f"{owner}: expected {_EXPECTED[kind]} for the setting '{key}', found {found}; {advice}"
        ) from None
    if kind is float and not math.isfinite(converted):
        raise EvalkitError(
            f"{owner}: expected a finite number for the setting '{key}', found {found}; {advice}"
        )
    return converted
