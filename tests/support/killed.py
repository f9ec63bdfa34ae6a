"""What a process that is killed leaves: copies of a folder at every boundary of its changes.

Python tells hooks of every call that changes files before it is made. A copy of the folder that is
taken then is what is there if the process is killed at that moment. An append may be torn as well:
where a table is about to be made durable, a copy has half of its last line.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_CHANGES = {"os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "os.link"}
_WRITES = os.O_WRONLY | os.O_RDWR
_told: list[Callable[[], None]] = []
"""Who is told before a change; a hook cannot be removed."""
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _told or not (event in _CHANGES or (event == "open" and _is_write(arguments))):
        return
    tell, _told[:] = _told[0], []  # what it does itself is no change
    try:
        tell()
    finally:
        _told[:] = [tell]


def _is_write(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & _WRITES)


@contextmanager
def before_changes(tell: Callable[[], None]) -> Iterator[None]:
    """Call a function before each change to a file, and before each wait for the disk.

    Args:
        tell: may raise, in place of the change.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True

    def waited(descriptor: int) -> None:
        _hook("os.rename", ())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", waited)
        _told[:] = [tell]
        try:
            yield
        finally:
            _told[:] = []


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, but for locks and for records that say when they were made."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith((".opening", ".writers", ".lock"))
        if "writer.json" not in path.name
    }


def copies(folder: Path, work: Callable[[], None], into: Path) -> list[Path]:
    """Do some work on a folder, and return copies as a kill would leave it, each state once.

    Args:
        folder: that is worked on; it need not be there yet.
        work: what is done.
        into: where the copies go.
    """
    taken: list[Path] = []
    seen: list[dict[str, bytes]] = []

    def keep(change: Callable[[Path], None] | None = None) -> None:
        copy = into / f"killed-{len(taken)}"
        if folder.exists():
            shutil.copytree(folder, copy)
        else:
            copy.mkdir(parents=True)
        if change is not None:
            change(copy)
        # Times differ, states do not.
        state = {k: v for k, v in contents(copy).items() if k != "run.json"}
        state["has run.json"] = str((copy / "run.json").exists()).encode()
        if state in seen:
            shutil.rmtree(copy)
            return
        seen.append(state)
        taken.append(copy)

    last: dict[str, bytes] = {}

    def take() -> None:
        before, now = dict(last), contents(folder)
        last.clear()
        last.update(now)
        for name, content in now.items():
            grown = content.startswith(before.get(name, b"x")) and content != before[name]
            if name.endswith(".csv") and grown:
                half = (len(before[name]) + len(content)) // 2
                keep(lambda copy, name=name, half=half: os.truncate(copy / name, half))  # type: ignore[misc]
        keep()

    with before_changes(take):
        work()
    keep()
    return taken
