"""Locks on files: the kernel frees them when a process ends, however it ends.

They are those of ``flock``. A file of a lock may be removed by who holds it: a lock counts only
where its file is still the one at the path.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path

from evalkit.storage.files import unwritable

try:
    import fcntl
except ImportError:  # where there is no flock at all
    fcntl = None  # type: ignore[assignment]

PATIENCE = 2.0
"""Seconds that a start waits for a lock: a killed process takes a moment to end, and whoever looks
whether a process lives holds its lock for one."""
_GLANCE = 0.02
_NONE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""What file systems without locks answer."""


class Lock:
    """A lock that is held until it is released, is forgotten, or the process ends.

    Attributes:
        works: whether the file system has locks; without them everyone gets one.
    """

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.works = descriptor is not None
        self._path, self._descriptor = path, descriptor
        self._closed = None if descriptor is None else weakref.finalize(self, os.close, descriptor)

    def release(self) -> None:
        """Free the lock, for processes that were forked from this one too."""
        if self._closed is not None and self._closed.alive:
            assert fcntl is not None
            assert self._descriptor is not None
            with suppress(OSError):  # closing frees it, too
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._closed()

    def remove(self) -> None:
        """Remove the file of a lock that is held exclusively, if it can be, and free it."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        self.release()


def take(
    path: Path, shared: bool = False, patience: float | None = None, wait: bool = False
) -> Lock | None:
    """Return a lock on a file, which is made when missing; None where others hold it.

    Args:
        path: the file; its folder is there.
        shared: whether others may hold it too, each of them shared.
        patience: seconds after which it is given up; None for :data:`PATIENCE`.
        wait: wait until it is free instead.

    Raises:
        EvalkitError: the file cannot be made.
        FileNotFoundError: its folder is gone.
    """
    until = time.monotonic() + (PATIENCE if patience is None else patience)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise unwritable(path, error) from error
        kind = "free"
        try:
            kind = _try(descriptor, shared, wait)
            if kind == "taken" and _is_at(descriptor, path):
                lock, descriptor = Lock(path, descriptor), -1
                return lock
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if kind == "none":
            return Lock(path, None)
        if kind == "held":
            if time.monotonic() >= until:
                return None
            time.sleep(_GLANCE)


def is_held(path: Path) -> bool | None:
    """Return whether someone holds a lock exclusively, None where there is no telling.

    Nothing is written.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        kind = _try(descriptor, shared=True, wait=False)
    finally:
        os.close(descriptor)
    return None if kind == "none" else kind == "held"


def _try(descriptor: int, shared: bool, wait: bool) -> str:
    """Return what became of a lock: ``"taken"``, ``"held"`` by others, or ``"none"``."""
    if fcntl is None:
        return "none"
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NONE:
            return "none"
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return "held"
    return "taken"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        found, own = path.stat(), os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)
