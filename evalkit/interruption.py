"""Ctrl-C and SIGTERM: what they end at once, and what they wait for.

A user presses Ctrl-C; a scheduler sends SIGTERM some seconds before it kills. Both end a command
where it stands, but for what must not be half done: writes of a few milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
"""Exit statuses, as a shell has them of a program that a signal has ended."""


class Terminated(BaseException):
    """SIGTERM has come. No code that catches exceptions catches it."""


_received: list[int] = []
"""Signals that have come; each ends the command, and one of the same kind ends the process."""
_waiting: list[int] = []
"""Signals that came within :func:`uninterrupted`."""
_writing = 0
"""How many blocks of :func:`uninterrupted` there are around what runs."""


@contextmanager
def handled() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the block by an exception, and a second one end the process.

    The exceptions are KeyboardInterrupt and :class:`Terminated`. Handlers are as they were after
    the block. Only the main thread can have any; the block is run without in another.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    _waiting.clear()
    names = (signal.SIGINT, signal.SIGTERM)
    before = [(name, signal.getsignal(name)) for name in names]
    for name, known in before:
        # What is ignored stays so: the user wants a command in the background to go on.
        if known is not signal.SIG_IGN:
            signal.signal(name, _handle)
    try:
        yield
    finally:
        for name, known in before:
            signal.signal(name, signal.SIG_DFL if known is None else known)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let what would end the block wait for its end, a few milliseconds."""
    global _writing
    _writing += 1
    try:
        yield
    finally:
        _writing -= 1
        if _waiting and not _writing:
            name = _waiting[0]
            _waiting.clear()
            raise _exception(name)


def _handle(name: int, frame: FrameType | None) -> None:
    if name in _received:  # whatever is being tidied up takes too long
        print("evalkit: ended at once", file=sys.stderr, flush=True)
        os._exit(128 + name)
    _received.append(name)
    if _writing:
        _waiting.append(name)
        return
    raise _exception(name)


def _exception(name: int) -> BaseException:
    return KeyboardInterrupt() if name == signal.SIGINT else Terminated()
