"""Progress on standard error: a bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

SECONDS_BETWEEN_LINES = 30.0
"""Where there is no terminal: a log stays readable, and one sees that something moves."""


class Shown(Protocol):
    """What shows progress."""

    def update(self, done: int, total: int, text: str) -> None:
        """Show how far the work is, and what it is at."""

    def say(self, text: str) -> None:
        """Show a line of its own."""


class NotShown:
    """Progress of one of several processes, of which another shows that of all."""

    def update(self, done: int, total: int, text: str) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""


NOT_SHOWN = NotShown()


@contextmanager
def shown_progress(name: str) -> Iterator[Shown]:
    """Yield what shows progress on standard error until the end of the block.

    Args:
        name: the name of the work, until something else is known.
    """
    if sys.stderr.isatty():
        with _bar(name) as bar:
            yield bar
    else:
        yield Lines(lambda text: print(text, file=sys.stderr, flush=True))


@dataclass
class Lines:
    """Lines with what is done and the time left, one in so many seconds and one at the end.

    Args:
        write: takes a line.
        clock: in seconds.
        every: seconds between lines.
    """

    write: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    every: float = SECONDS_BETWEEN_LINES
    _started: tuple[float, int] | None = field(default=None, init=False)
    _last: float = field(default=0.0, init=False)

    def update(self, done: int, total: int, text: str) -> None:
        """Write a line if it is time for one, or if the last of several is done."""
        now = self.clock()
        if self._started is None:
            self._started, self._last = (now, done), now
            return
        since, before = self._started
        ended = done >= total and before < total
        if now - self._last < self.every and not ended:
            return
        self._last = now
        if ended:
            self._started = (since, total)
        left = ""
        if before < done < total:
            seconds = (now - since) * (total - done) / (done - before)
            left = f", about {duration(seconds)} left"
        self.write(f"evalkit: {done} of {total}, {text}, {duration(now - since)} passed{left}")

    def say(self, text: str) -> None:
        """Write a line of its own."""
        self.write(text)


@contextmanager
def _bar(name: str) -> Iterator[Shown]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )

    class Bar:
        def update(self, done: int, total: int, text: str) -> None:
            bar.update(shown, completed=done, total=total, description=text)

        def say(self, text: str) -> None:
            bar.console.print(Text(text))

    with bar:
        shown = bar.add_task(name, total=None)
        yield Bar()
        if bar.tasks[0].total is None:
            bar.remove_task(shown)


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: 0.4 s, 12 s, 5 min, 3.5 h, 2.1 days."""
    for unit, size, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * size:
            value = seconds / size
            return f"{value:.2g} {unit}" if value < 9.95 else f"{value:.0f} {unit}"
    days = seconds / 86400
    return f"{days:.2g} days" if days < 9.95 else f"{days:.4g} days"
