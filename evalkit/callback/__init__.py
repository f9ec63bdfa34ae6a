"""Scores while a training goes on: under the Trainer of transformers, or that of Lightning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalkit.callback.lightning_callback import LightningScoreCallback
    from evalkit.callback.score_callback import ScoreCallback

__all__ = ["LightningScoreCallback", "ScoreCallback"]

_MODULES = {
    "LightningScoreCallback": "evalkit.callback.lightning_callback",
    "ScoreCallback": "evalkit.callback.score_callback",
}
"""Each needs a library that the other does not: it is imported where it is asked for."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)
