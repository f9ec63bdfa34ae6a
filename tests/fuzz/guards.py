"""What reading a file may not do: run code, touch what lies outside, take much memory or time.

An audit hook sees what Python opens, compiles, executes, imports and starts; it cannot be removed,
so that it is installed once and looks only while something is watched.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CANARY = "evalkit_canary"
"""Stands in every hostile piece of code, so that it is known when something compiles it."""
OUTSIDE = "outside-of-the-folder"
"""The folder beside the one that is read; hostile names lead there."""
SECONDS = 45
"""Of a processor, for one input: far more than any takes."""
WAITED = 6
"""So many times as long may an input take by the clock, on a machine that does much else."""
ALWAYS = 160 * 2**20
"""Bytes of memory that any input may take, ..."""
FACTOR = 48
"""...or so many times its own size, where that is more: Python's objects for a file of brackets."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link")
_FIRST_FD = dict.fromkeys(_CHANGES, 1) | {
    "os.mkdir": 2,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
}
_STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.startfile",
    "pty.spawn",
)
_NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request")
_INSTALLED = tuple(
    {
        str(Path(place).resolve())
        for place in (
            *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
            sys.prefix,
            sys.base_prefix,
            Path(__file__).parents[2],
            "/usr",
            "/lib",
            "/etc",
            "/proc",
            "/sys",
            "/dev/null",
            "/dev/urandom",
            Path.home() / ".bokeh",
        )
    }
)


@dataclass
class Watch:
    """What is watched.

    Attributes:
        folder: that is read; everything may be done in it.
        offences: what was done that may not be.
    """

    folder: str
    offences: list[str] = field(default_factory=list)


class Hang(BaseException):
    """An input took too long; no ``except Exception`` catches it."""


ALLOWED: list[str] = []
"""Folders of libraries, in which they may read and write."""
_watched: list[Watch] = []
_installed: list[bool] = []


def _place(path: Any) -> str:
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    return os.path.abspath(text) if text else ""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    watch = _watched[-1]
    if event == "open":
        _opened(watch, *arguments)
    elif event in _CHANGES:
        relative = any(isinstance(one, int) and one >= 0 for one in arguments[_FIRST_FD[event] :])
        for path in arguments[:2]:
            place = "" if relative else _place(path)  # relative to an open folder, then
            if place and not _is_inside(place, watch.folder):
                watch.offences.append(f"{event} {place}")
    elif event in ("compile", "exec"):
        _compiled(watch, event, arguments)
    elif event == "import" and CANARY in str(arguments[0]):
        watch.offences.append(f"import of {arguments[0]}")
    elif event == "pickle.find_class":
        watch.offences.append(f"an unpickler looks for {arguments[1]}.{arguments[2]}")
    elif event in _STARTS or event in _NETWORK:
        watch.offences.append(f"{event} {str(arguments)[:80]}")


def _opened(watch: Watch, path: Any, mode: Any, flags: Any) -> None:
    place = _place(path)
    if not place or _is_inside(place, watch.folder):
        return
    writes = isinstance(flags, int) and bool(flags & _WRITES)
    if writes and place != os.devnull:
        watch.offences.append(f"opened to write: {place}")
    elif not any(_is_inside(place, known) for known in _INSTALLED):
        watch.offences.append(f"opened to read: {place}")


def _compiled(watch: Watch, event: str, arguments: tuple[Any, ...]) -> None:
    source, file = (*arguments, "")[:2] if event == "compile" else ("", arguments[0].co_filename)
    text = source if isinstance(source, str | bytes) else ""
    known = CANARY.encode() in text if isinstance(text, bytes) else CANARY in text
    if known or _is_inside_one(_place(file), watch.folder):
        watch.offences.append(f"{event} of code from a file")


def _is_inside(place: str, folder: str) -> bool:
    return any(_is_inside_one(place, known) for known in (folder, *ALLOWED))


def _is_inside_one(place: str, folder: str) -> bool:
    return place == folder or place.startswith(folder.rstrip("/") + "/")


@contextmanager
def watched(folder: Path, seconds: int = SECONDS) -> Iterator[Watch]:
    """Watch what is done meanwhile.

    Args:
        folder: in which everything may be done.
        seconds: after which :class:`Hang` is raised, in the main thread.

    Yields:
        The watch, whose offences are whole at the end.
    """
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
    watch = Watch(os.path.abspath(folder))

    def hangs(*_: Any) -> None:
        raise Hang(f"more than {seconds} seconds")

    before = {one: signal.signal(one, hangs) for one in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WAITED * seconds)
    _watched.append(watch)
    try:
        yield watch
    finally:
        _watched.pop()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in before.items():
            signal.signal(one, handler)


def forget_peak() -> int:
    """Begin to measure the peak of memory anew; returns the bytes that are held now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return -1
    return peak()


def peak() -> int:
    """Return the most bytes that this process held since the last :func:`forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return -1


def bound_memory(more: int) -> None:
    """Let allocations fail beyond so many bytes more than this process has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.RLIM_INFINITY))


def size_of(folder: Path) -> int:
    """Return the bytes of all regular files in a folder."""
    total = 0
    for home, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(home, name)
            if os.path.isfile(path) and not os.path.islink(path):
                total += os.path.getsize(path)
    return total


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder, in memory where the machine has such a place."""
    shared = "/dev/shm"
    return tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None)
