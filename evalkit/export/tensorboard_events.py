"""TensorBoard: a run for each method, so that one chart of ``gamma`` holds all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evalkit.export.content import Content, provenance_text
from evalkit.export.series import held
from evalkit.extras import missing

ABOUT = "run"
"""The run that has the texts."""


def writer() -> Callable[[Content, Path], tuple[str, ...]]:
    """Return the function that writes the event files of a run into a folder.

    Raises:
        EvalkitError: there is no TensorBoard.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing("the package tensorboard", "an export to it", error, "export") from error

    def write(content: Content, folder: Path) -> tuple[str, ...]:
        notes = list(content.notes)
        series = [held(one, _holds, notes) for one in content.series]
        for curve in dict.fromkeys(one.curve for one in series):
            with SummaryWriter(str(folder / curve)) as events:
                if curve in content.labels:
                    events.add_text("method", content.labels[curve])
                for one in series:
                    for point in one.points if one.curve == curve else ():
                        events.add_scalar(one.quantity, point.value, point.step)
        with SummaryWriter(str(folder / ABOUT)) as events:
            events.add_text("run.json", _code(provenance_text(content.provenance)))
            if notes:
                events.add_text("notes", "\n".join(f"- {note}" for note in notes))
        return tuple(notes)

    return write


def _holds(value: float) -> bool:
    """Return whether a scalar of an event file, a float32, holds a value to its seven digits."""
    with np.errstate(over="ignore"):
        stored = float(np.float32(value))
    return math.isfinite(stored) and math.isclose(stored, value, rel_tol=1e-6)


def _code(text: str) -> str:
    """Return a text as a block of code in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())
