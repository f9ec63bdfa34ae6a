"""Tasks by specification: a registered name, a file and an attribute, or a module and an attribute.

The folder of a file, and the working folder for a module, are added at the end of ``sys.path``, so
that a task can import what lies beside it but never hides an installed package.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from evalkit.errors import EvalkitError
from evalkit.names import task_name
from evalkit.registry import suggest
from evalkit.tasks.families import make_task, registered_task, task_names
from evalkit.tasks.task import Setting, Task, user_code

FORMS = "a registered name, 'file.py:attribute' or 'package.module:attribute'"


def load_task(spec: str, settings: Mapping[str, Setting] | None = None) -> Task:
    """Return the task that ``spec`` names.

    Args:
        spec: a registered name, ``file.py:attribute`` or ``package.module:attribute``; the
            attribute is a Task, or a function that returns one and takes nothing but settings, as
            :func:`evalkit.tasks.register_family` has them. The code of the file or the module
            runs: a specification from a data file must never come here.
        settings: the settings of a family of tasks, as values or as the text of them.

    Returns:
        The task; where it has no name of its own, ``spec`` becomes its name, a file without its
        folders.

    Raises:
        EvalkitError: there is no such task, or its code fails.
    """
    location, colon, attribute = spec.rpartition(":")
    if not colon or spec in task_names():
        if spec.endswith(".py"):
            raise EvalkitError(
                f"expected a task as {FORMS}, found '{spec}' without an attribute; "
                f"add the attribute, as in '{spec}:task'"
            )
        return registered_task(spec, settings)
    if not location or not attribute:
        raise EvalkitError(f"expected a task as {FORMS}, found '{spec}'; write both parts")
    task = _task_of(_attribute_of(load_code(location), attribute, location), spec, settings)
    if not task.name or task.name == spec:
        return dataclasses.replace(task, name=_name(spec))
    if task.name in task_names() and not _is_registered(task):
        raise EvalkitError(
            f"task '{spec}': expected a name of its own, found '{task.name}', which another task "
            "is registered under; choose another name"
        )
    return task


def _name(spec: str) -> str:
    """Return what a task of a specification is called, whichever path and link lead to its file."""
    location, _, attribute = spec.rpartition(":")
    if _is_file(location):
        location = str(Path(location).expanduser().resolve())
    return task_name(f"{location}:{attribute}")


def _is_file(location: str) -> bool:
    return location.endswith(".py") or "/" in location or "\\" in location


def _is_registered(task: Task) -> bool:
    return not task.settings and registered_task(task.name) is task


def load_code(location: str) -> ModuleType:
    """Import a Python file or module for what it registers, such as methods.

    Args:
        location: ``file.py`` or ``package.module``.

    Raises:
        EvalkitError: it is not there, or its code fails.
    """
    return _import_file(location) if _is_file(location) else _import_module(location)


def _import_file(location: str) -> ModuleType:
    """Run a Python file as a module, once: as long as it does not change, it is the same module."""
    path = Path(location).expanduser().resolve()
    if not path.is_file():
        beside = [item.name for item in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = suggest(path.name, beside) if beside else "check the path"
        raise EvalkitError(f"expected a Python file, found no file '{location}'; {hint}")
    source = path.read_bytes()
    name = f"evalkit_file_{hashlib.sha256(bytes(path) + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    _make_importable(path.parent)
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look the module up by its name
    try:
        with user_code(f"the file '{location}'", path):
            # Compiled here, not by importlib: its cache can miss an edit within the same second.
            exec(compile(source, path, "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(location: str) -> ModuleType:
    if not location or location.startswith("."):
        raise EvalkitError(
            f"expected a file.py or a package.module, found '{location}'; write its name in full"
        )
    _make_importable(Path.cwd())
    try:
        with user_code(f"the module '{location}'"):
            return importlib.import_module(location)
    except EvalkitError as error:
        missing = error.__cause__
        # A missing module further down is a fault of the module's code, and said so already.
        if isinstance(missing, ModuleNotFoundError) and f"{location}.".startswith(
            f"{missing.name}."
        ):
            raise EvalkitError(
                f"expected an importable module '{location}', found no module named "
                f"'{missing.name}'; install it, or start from the folder that holds it"
            ) from None
        raise


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _attribute_of(module: ModuleType, attribute: str, location: str) -> Any:
    if hasattr(module, attribute):
        return getattr(module, attribute)
    tasks = [name for name, value in vars(module).items() if isinstance(value, Task)]
    hint = suggest(attribute, tasks) if tasks else "define an evalkit.Task under that name"
    raise EvalkitError(f"expected '{attribute}' in '{location}', found no such attribute; {hint}")


def _task_of(value: Any, spec: str, settings: Mapping[str, Setting] | None) -> Task:
    found = type(value).__name__
    if isinstance(value, Task) and settings:
        raise EvalkitError(
            f"expected no settings for '{spec}', which is a Task, found '{next(iter(settings))}'; "
            "point to a function that makes a Task of settings, or leave them out"
        )
    if callable(value) and _needs_arguments(value):
        found = "a function that needs arguments"
    elif callable(value):
        value = make_task(value, spec, settings)
        found = f"a function that returns {type(value).__name__}"
    if not isinstance(value, Task):
        raise EvalkitError(
            f"expected '{spec}' to be an evalkit.Task, or a function that returns one and takes "
            f"nothing but settings with defaults, found {found}; point to the Task"
        )
    return value


def _needs_arguments(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):  # the latter for built-in functions that do not say
        return True
    return False
