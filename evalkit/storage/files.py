"""Files that are written whole or not at all, and read only where they have an end."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from evalkit.errors import EvalkitError

PART = ".part"
"""The end of the name of what is being written, which begins with a dot."""
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(path: Path, advice: str) -> None:
    """Refuse what is there but is no regular file; what is not there passes.

    A reader would hang on a pipe or a device.

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


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one whole.

    Raises:
        EvalkitError: the file cannot be written; the old one is kept.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Return a folder, made when missing.

    Raises:
        EvalkitError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvalkitError(
            f"expected a folder that can be made at {folder}, found: {error.strerror}; "
            "name another folder"
        ) from error
    return folder


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check that files can be written to a folder, made for it when missing; nothing is left.

    Raises:
        EvalkitError: it cannot be made, or written to.
    """
    folder = Path(path)
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        with tempfile.TemporaryFile(dir=make_folder(folder)):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        for one in missing:
            with contextlib.suppress(OSError):
                one.rmdir()


def unwritable(path: Path, error: OSError) -> EvalkitError:
    return EvalkitError(
        f"expected a file that can be written at {path}, found: {error.strerror}; "
        "free the path or name another folder"
    )
