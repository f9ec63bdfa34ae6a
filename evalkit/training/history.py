"""``history.csv`` while training writes it: a line for each step, cut where a training goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from evalkit.counts import counted
from evalkit.errors import EvalkitError
from evalkit.storage.files import check_regular, unwritable
from evalkit.storage.history import HISTORY_FILE, history_head, history_line
from evalkit.storage.rows import TrainingStep


class History:
    """An open history.

    Args:
        path: of the file.
        file: the file, at its end.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file

    def add(self, row: TrainingStep) -> None:
        """Add a step; a reader sees it at once.

        Raises:
            EvalkitError: the file cannot be written.
        """
        try:
            self._file.write(history_line(row).encode("utf-8"))
            self._file.flush()
        except OSError as error:
            raise unwritable(self._path, error) from error

    def keep(self) -> None:
        """Return when all that was added will outlast the machine.

        Raises:
            EvalkitError: the file cannot be written.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self._path, error) from error


@contextmanager
def opened_history(folder: Path, steps: int) -> Iterator[History]:
    """Yield the history of a training that has taken ``steps`` steps; what lies beyond is cut off.

    Nobody else can open it as long: two trainings in one folder would mix their rows.

    Args:
        folder: of the training.
        steps: how many rows are kept; 0 starts a history.

    Raises:
        EvalkitError: there are fewer rows, the file cannot be written, or another process trains.
    """
    path = folder / HISTORY_FILE
    check_regular(path, "free the path or choose another `folder`")
    try:
        file = path.open("r+b" if steps else "a+b")
    except FileNotFoundError as error:
        raise _too_short(path, steps, 0) from error
    except OSError as error:
        raise unwritable(path, error) from error
    with file:
        _lock(file, folder)
        head = history_head().encode("utf-8")
        file.seek(0)
        lines = file.read().split(b"\n")[:-1] if steps else []
        if steps and (len(lines) <= steps or lines[0] + b"\n" != head):
            raise _too_short(path, steps, max(len(lines) - 1, 0))
        kept = b"".join(line + b"\n" for line in lines[: steps + 1]) if steps else b""
        try:
            file.truncate(len(kept))
            file.seek(len(kept))
            if not steps:
                file.write(head)
                file.flush()
        except OSError as error:
            raise unwritable(path, error) from error
        yield History(path, file)


def _too_short(path: Path, steps: int, found: int) -> EvalkitError:
    return EvalkitError(
        f"expected the {counted(steps, 'step')} of the training so far in '{path}', found {found}; "
        "copy the file again, or choose another `folder`"
    )


def _lock(file: BinaryIO, folder: Path) -> None:
    """Refuse a file that another process has locked; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:  # a system without such locks
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise EvalkitError(
            f"expected no other training in '{folder}', found one at work; wait for its end, or "
            "choose another `folder`"
        ) from error
    except OSError:  # a file system without locks
        return
