"""evalkit: how good is an approximate natural gradient, at this checkpoint, on this data?

The names below are the public interface. They load on first use, so that the command line answers
``--help`` without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from evalkit.errors import EvalkitError
from evalkit.version import __version__

if TYPE_CHECKING:
    from evalkit.curvature import PastTask, past_task
    from evalkit.indicator import gamma
    from evalkit.linearization import FormedRows, LayerFactors, Linearization, linearize
    from evalkit.next_token import shifted_labels
    from evalkit.scoring import score
    from evalkit.solvers import NaturalGradient, natural_gradient
    from evalkit.tasks import Task
    from evalkit.updates import Update, method, methods, update

_HOME = {
    "FormedRows": "evalkit.linearization",
    "LayerFactors": "evalkit.linearization",
    "Linearization": "evalkit.linearization",
    "NaturalGradient": "evalkit.solvers",
    "PastTask": "evalkit.curvature",
    "Task": "evalkit.tasks",
    "Update": "evalkit.updates",
    "gamma": "evalkit.indicator",
    "linearize": "evalkit.linearization",
    "method": "evalkit.updates",
    "methods": "evalkit.updates",
    "natural_gradient": "evalkit.solvers",
    "past_task": "evalkit.curvature",
    "score": "evalkit.scoring",
    "shifted_labels": "evalkit.next_token",
    "update": "evalkit.updates",
}

__all__ = [
    "EvalkitError",
    "FormedRows",
    "LayerFactors",
    "Linearization",
    "NaturalGradient",
    "PastTask",
    "Task",
    "Update",
    "__version__",
    "gamma",
    "linearize",
    "method",
    "methods",
    "natural_gradient",
    "past_task",
    "score",
    "shifted_labels",
    "update",
]


_ROOMS = ("optim",)
"""Rooms that are public as they are, and load on first use as well."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'evalkit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
