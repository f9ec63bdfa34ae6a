"""Tasks by name: single ones, and families that settings make a task of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from evalkit.errors import EvalkitError
from evalkit.given_settings import defaults_of, fitted
from evalkit.registry import Registry

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
        name: the name of the family and its tasks.
        make: its keyword arguments are the settings; each has a default, of the type of the
            setting.

    Raises:
        EvalkitError: the name is taken.
    """
    _REGISTRY.add(name, make)


def registered_task(name: str, settings: Mapping[str, Setting] | None = None) -> Task:
    """Return the registered task ``name``.

    Args:
        name: the name of a task or a family.
        settings: the settings of a family, as values or as the text of them.

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
    chosen = {**defaults, **fitted(f"task '{name}'", settings or {}, defaults)}
    with user_code(f"the task '{name}'"):
        task = make(**chosen)
    if chosen and isinstance(task, Task):
        return dataclasses.replace(task, name=task.name or name, settings=chosen)
    return task


def setting_names(name: str) -> tuple[str, ...]:
    """Return the settings of a registered task; none for a name that is not registered."""
    return tuple(defaults_of(_REGISTRY.get(name))) if name in _REGISTRY else ()
