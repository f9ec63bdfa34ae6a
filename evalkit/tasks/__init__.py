"""Tasks: what is trained and scored.

A bundled task is one file in this folder that calls :func:`register`; it is found here. Users bring
their own by ``file.py:attribute`` or ``package.module:attribute``.
"""

import importlib
import pkgutil

from evalkit.tasks.loading import load_task
from evalkit.tasks.task import Recipe, Samples, Task, register, task_names

__all__ = ["Recipe", "Samples", "Task", "load_task", "register", "task_names"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
