"""Tasks by name: single ones, and families that settings make a task of."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from evalkit.errors import EvalkitError
from evalkit.registry import Registry, suggest

if TYPE_CHECKING:
    from evalkit.tasks.task import Task

Setting = str | int | float | bool
"""A value that a task was made with: a model's name, a number of samples."""
Maker = Callable[..., "Task"]
"""Makes a task; its keyword arguments with their defaults are the settings."""

_REGISTRY: Registry[Maker] = Registry("task")

task_names = _REGISTRY.names


def register(task: Task) -> Task:
    """Register ``task`` under its name and return it.

    Raises:
        EvalkitError: it has no name, or the name is taken.
    """
    if not task.name:
        raise EvalkitError("expected a name to register a task, found none; pass Task(name=...)")
    _REGISTRY.add(task.name, lambda: task)
    return task


def register_family(name: str, make: Maker) -> None:
    """Register what makes a task of settings.

    Args:
        name: of the family and its tasks.
        make: its keyword arguments are the settings; each has a default, of the type of the
            setting.

    Raises:
        EvalkitError: the name is taken.
    """
    _REGISTRY.add(name, make)


def registered_task(name: str, settings: Mapping[str, Setting] | None = None) -> Task:
    """Return the registered task ``name``.

    Args:
        name: of a task or a family.
        settings: of a family, as values or as the text of them.

    Raises:
        EvalkitError: there is no such task or setting, or a value does not fit.
    """
    return make_task(_REGISTRY.get(name), name, settings)


def make_task(make: Maker, name: str, settings: Mapping[str, Setting] | None = None) -> Task:
    """Return the task that a function makes of settings.

    Args:
        make: see :func:`register_family`.
        name: what the task is called where the function gives no name.
        settings: as values or as the text of them.
    """
    from evalkit.tasks.task import Task, user_code

    defaults = defaults_of(make)
    chosen = dict(defaults)
    for key, value in (settings or {}).items():
        if key not in defaults:
            hint = suggest(key, defaults) if defaults else "it has none: leave them out"
            raise EvalkitError(f"task '{name}': unknown setting '{key}'; {hint}")
        chosen[key] = _parsed(name, key, value, defaults[key])
    with user_code(f"the task '{name}'"):
        task = make(**chosen)
    if chosen and isinstance(task, Task):
        return dataclasses.replace(task, name=task.name or name, settings=chosen)
    return task


def setting_names(name: str) -> tuple[str, ...]:
    """Return the settings of a registered task; none for a name that is not registered."""
    return tuple(defaults_of(_REGISTRY.get(name))) if name in _REGISTRY else ()


def defaults_of(make: Maker) -> dict[str, Setting]:
    """Return the settings of a task-making function with their defaults."""
    parameters = inspect.signature(make).parameters
    return {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _parsed(name: str, key: str, value: Setting, default: Setting) -> Setting:
    """Return a setting in the type of its default."""
    kind = type(default)
    if kind not in (str, int, float, bool):
        raise EvalkitError(
            f"task '{name}': expected a default that is text or a number for the setting '{key}', "
            f"found {default!r}; give it one in that function, or leave the setting out"
        )
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    try:
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        parsed = kind(str(value))
    except (ValueError, KeyError):
        expected = {bool: "true or false", int: "an integer", float: "a number"}[kind]
        raise EvalkitError(
            f"task '{name}': expected {expected} for the setting '{key}', found {value!r}; "
            f"pass one such as {key}={str(default).lower()}"
        ) from None
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise EvalkitError(
            f"task '{name}': expected a finite number for the setting '{key}', found {value!r}; "
            f"pass one such as {key}={default}"
        )
    return parsed
