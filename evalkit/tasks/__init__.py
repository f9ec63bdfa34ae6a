"""Tasks: what is trained and scored.

Bundled tasks, or families of tasks, are declared in :mod:`evalkit.tasks.bundled`. Users bring their
own by ``file.py:attribute`` or ``package.module:attribute``. The names below load on first use, so
that names and settings of tasks are known without importing torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from evalkit.tasks import bundled as bundled
from evalkit.tasks.families import register, register_family, setting_names, task_names

if TYPE_CHECKING:
    from evalkit.tasks.loading import load_task
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

_HOME = {"load_task": "loading", "Recipe": "task", "Samples": "task", "Task": "task"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
