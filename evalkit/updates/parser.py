"""Methods as users write them, a name with settings: ``"sf:labels_per_sample=4"``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from evalkit.errors import EvalkitError
from evalkit.given_settings import defaults_of, fitted
from evalkit.names import split_method
from evalkit.registry import suggest
from evalkit.updates.registry import Method, check_settings, registered

GIVEN = ("seed", "on_iteration", "others", "past", "optimizer")
"""Parameters that a method receives rather than being set."""


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a method and its settings, from ``"sf:labels_per_sample=4"``.

    Raises:
        EvalkitError: the method or a setting is unknown, or a setting is not name=value.
    """
    if not isinstance(text, str):
        raise EvalkitError(f"expected the name of a method, found {text!r}; pass a string")
    name, settings = split_method(text)
    registered(name)
    for key, value in settings.items():
        if value is None:
            raise EvalkitError(
                f"expected settings as name=value in method '{text}', found '{key}'; write "
                f"'{name}:setting=value'"
            )
    keys = [part.partition("=")[0] for part in text.split(":")[1:]]
    for key in keys:
        if keys.count(key) > 1:
            raise EvalkitError(
                f"expected setting '{key}' once in method '{text}', found it again; write a method "
                f"for each value, as '{name}:{key}=...,{name}:{key}=...'"
            )
    return name, checked_settings(name, settings)


def function_of(text: str) -> Method:
    """Return the function of a method, settings left aside."""
    return registered(parse(text)[0])


def checked_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a method in the types of their defaults.

    Raises:
        EvalkitError: the method has no such setting, or a value does not fit.
    """
    for key in settings.keys() & set(GIVEN[:1] + GIVEN[2:]) & defaults_of(registered(name)).keys():
        raise EvalkitError(
            f"expected '{key}' for all methods together, found it as a setting of '{name}'; give "
            f"`{key}={settings[key]}` beside the methods"
        )
    parameters = list(defaults_of(registered(name)).items())[2:]
    defaults = {key: default for key, default in parameters if key not in GIVEN}
    checked = fitted(f"method '{name}'", settings, defaults)
    for key, value in checked.items():
        choices = _choices(name, key)
        if choices and value not in choices:
            near = suggest(str(value), map(str, choices))
            advice = near if near.startswith("did") else f"its default is {defaults[key]!r}"
            raise EvalkitError(
                f"expected setting '{key}' of method '{name}' to be one of "
                f"{', '.join(map(str, choices))}, found {value!r}; {advice}"
            )
    check_settings(name, defaults | checked)
    return checked


def _choices(name: str, key: str) -> tuple[Any, ...]:
    """Return the values that a method's type hint gives a setting, none where it names a type."""
    try:
        hint = get_type_hints(registered(name)).get(key)
    except (NameError, TypeError):  # a user's method need not have hints that hold up
        return ()
    parts = get_args(hint) if get_origin(hint) is Union else (hint,)
    return tuple(v for part in parts if get_origin(part) is Literal for v in get_args(part))
