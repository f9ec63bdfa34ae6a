"""Tasks: what is trained and scored.

A bundled task, or family of tasks, is one file in this folder that calls :func:`register` or
:func:`register_family`; it is found here. Users bring
their own by ``file.py:attribute`` or ``package.module:attribute``.
"""

import importlib
import pkgutil

from evalkit.tasks.loading import load_task
from evalkit.tasks.registered import register, register_family, setting_names, task_names
from evalkit.tasks.task import Recipe, Samples, Task

__all__ = [
    "Recipe",
    "Samples",
    "Task",
    "load_task",
    "register",
    "register_family",
    "setting_names",
    "task_names",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
