"""The Trainer that a callback is called by."""

from __future__ import annotations

import sys
from typing import Any


def calling_trainer(callback: object) -> Any:
    """Return the Trainer that calls one of its callbacks now, None where there is none.

    A Trainer gives its callbacks everything but itself, and only its own ``log`` reaches what it
    reports to: callbacks of a log that other callbacks write to are called before any of the user.
    So it is found among those who are calling.

    Args:
        callback: that is called.
    """
    from transformers import Trainer

    frame = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer) and callback in found.callback_handler.callbacks:
            return found
        frame = frame.f_back  # type: ignore[assignment]
    return None
