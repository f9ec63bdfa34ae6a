"""Files that can be read to their end: no pipe, device or folder, on which a reader would hang."""

from __future__ import annotations

import stat
from pathlib import Path

from evalkit.errors import EvalkitError

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(path: Path, advice: str) -> None:
    """Refuse what is there but is no regular file; what is not there passes.

    Args:
        path: to look at.
        advice: the end of an error sentence.

    Raises:
        EvalkitError: a pipe, a directory, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # absent, or a name that no file can have
        return
    if not stat.S_ISREG(mode):
        found = next((name for test, name in _KINDS if test(mode)), "something else")
        raise EvalkitError(f"expected a file at {path}, found {found}; {advice}")
