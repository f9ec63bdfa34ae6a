"""Times of pieces of work, taken in turns with a training step in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)
Work = Callable[[], object]
Timed = Callable[[], float]
"""Does a piece of work and returns the seconds that count."""

_STEPS = 3
_DURATION = 0.01
"""Training steps before and after every piece of work, and the seconds that they take at least."""


@dataclass(frozen=True)
class Timing:
    """One piece of work, a number per repetition.

    Attributes:
        seconds: that it took.
        step_seconds: the median time of the training steps around it.
    """

    seconds: tuple[float, ...]
    step_seconds: tuple[float, ...]

    @property
    def steps(self) -> tuple[float, ...]:
        """The cost in training steps."""
        return tuple(
            took / step for took, step in zip(self.seconds, self.step_seconds, strict=True)
        )


def seconds(work: Work) -> float:
    """Return the wall time of one call, that of a GPU included."""
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def in_turns(
    pieces: Mapping[Key, Timed],
    step: Timed,
    repetitions: int,
    on_piece: Callable[[Key], None] | None = None,
) -> dict[Key, Timing]:
    """Time pieces of work with training steps around each, so that other load hits both.

    Everything runs once before it counts.

    Args:
        pieces: by name, or another key.
        step: one training step.
        repetitions: how often to take every piece.
        on_piece: called with the key of the piece that follows.
    """
    step()
    found: dict[Key, list[tuple[float, float]]] = {name: [] for name in pieces}
    for repetition in range(repetitions + 1):
        for name, piece in pieces.items():
            if on_piece is not None:
                on_piece(name)
            before = _repeated(step)
            took = piece()
            after = _repeated(step)
            if repetition:
                found[name].append((took, statistics.median(before + after)))
    return {name: Timing(*zip(*pairs, strict=True)) for name, pairs in found.items()}


def _repeated(step: Timed) -> list[float]:
    taken: list[float] = []
    while len(taken) < _STEPS or sum(taken) < _DURATION:
        taken.append(step())
    return taken
