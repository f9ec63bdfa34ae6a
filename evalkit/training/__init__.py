"""Training of a task, which makes a trajectory of checkpoints.

The names below load on first use: tasks need the optimizers, and training needs tasks.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalkit.training.loop import Epoch, train

__all__ = ["Epoch", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.loop"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
