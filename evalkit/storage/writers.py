"""Who writes to a RUN: a process alone, or several with a part each; their locks and records.

A lone writer holds ``RUN/.writers`` exclusively and writes the RUN's own tables. Every other holds
that lock shared and the one of its part exclusively. A run is opened and assembled under
``RUN/.opening``. The locks go with the processes: whoever does not hold one has ended.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from evalkit.errors import EvalkitError
from evalkit.storage import locks
from evalkit.storage.files import make_folder
from evalkit.storage.json_files import printable
from evalkit.storage.locks import Lock
from evalkit.storage.parts import make_part, part_folder, part_folders

WRITER_FILE = "writer.json"
WRITERS_LOCK = ".writers"
OPENING_LOCK = ".opening"
PART_LOCK = ".lock"
_MOMENT = 0.1
"""Seconds after which a lock is held by who writes, not by who looks whether someone does."""
_LARGEST = 1 << 20
"""Bytes of a record, far above what one has."""


@dataclass(frozen=True)
class Record:
    """What ``writer.json`` says of a process that writes.

    Attributes:
        host: the machine.
        pid: the number of the process there.
        started: when it began, as ``run.json`` writes times.
        units: that it stored.
        failed: that it could not score.
        seconds: that these took, by a clock that never jumps.
        checkpoint: of the unit that it scores now; None for none.
        batch: of that unit.
        since: when it began with that unit.
        ended: whether it went to its end.
    """

    host: str = ""
    pid: int = 0
    started: str = ""
    units: int = 0
    failed: int = 0
    seconds: float = 0.0
    checkpoint: str | None = None
    batch: int | None = None
    since: str | None = None
    ended: bool = False


class Writer:
    """This process as a writer to a RUN.

    Args:
        run: the folder of the run.
        name: what the process is called beside others; None where it writes alone.

    Attributes:
        place: the folder of the tables that it writes.
    """

    def __init__(self, run: Path, name: str | None) -> None:
        self.run, self.name = run, name
        self.place = run if name is None else part_folder(run, name)
        self.locked = True
        self._locks: list[Lock] = []
        self._record = Record()
        self._since = time.monotonic()

    @property
    def writes(self) -> bool:
        """Whether the locks are held."""
        return bool(self._locks)

    def begin(self) -> None:
        """Take the locks; the run must be held open (:func:`opening`).

        Raises:
            EvalkitError: another process writes what this one would, or the folder cannot be
                written to.
        """
        alone = self.name is None
        first = locks.take(self.run / WRITERS_LOCK, shared=not alone)
        if first is None:
            raise occupied(self.run, alone)
        taken = [first]
        if self.name is not None:
            make_part(self.run, self.name)
            own = locks.take(self.place / PART_LOCK)
            if own is None:
                first.release()
                raise occupied(self.run, alone, self.name)
            taken.append(own)
        self._locks, self.locked = taken, first.works
        self._since = time.monotonic()
        # An earlier start of the same name has measured units too.
        before = read_record(self.place) if self.name is not None else None
        kept = before or Record()
        self._record = Record(
            printable(socket.gethostname()), os.getpid(), now(), kept.units, 0, kept.seconds
        )
        self._write()

    def scores(self, checkpoint: str, batch: int) -> None:
        """Let the record say what is scored now."""
        self._since = time.monotonic()
        self._record = replace(self._record, checkpoint=checkpoint, batch=batch, since=now())
        self._write()

    def stored(self, failed: bool = False) -> None:
        """Let the record count a unit that is done, or failed."""
        at, record = time.monotonic(), self._record
        self._record = replace(
            record,
            units=record.units + (not failed),
            failed=record.failed + failed,
            seconds=record.seconds + at - self._since,
            checkpoint=None,
            batch=None,
            since=None,
        )
        self._since = at
        self._write()

    def end(self) -> None:
        """Let the record say that the process went to its end, and free the locks."""
        if self._locks and self.name is not None:
            self._record = replace(
                self._record, checkpoint=None, batch=None, since=None, ended=True
            )
            self._write()
        self.release()

    def release(self) -> None:
        """Free the locks. A process that is alone leaves neither record nor files of locks."""
        held, self._locks = self._locks, []
        if held and self.name is None:
            # Files that stay are only untidy: neither they nor a folder that cannot be written to
            # may hide what ended the study.
            with suppress(OSError):
                (self.place / WRITER_FILE).unlink(missing_ok=True)
            held[0].remove()
            with suppress(OSError, EvalkitError):
                left = locks.take(self.run / OPENING_LOCK, patience=0.0)
                if left is not None:
                    left.remove()
            return
        for lock in reversed(held):
            lock.release()

    def _write(self) -> None:
        # No more than a word on what goes on: it need not survive what the rows survive, and a
        # full disk does not end a study for it.
        temporary = self.place / f".{WRITER_FILE}.{os.getpid()}.part"
        with suppress(OSError):
            temporary.write_text(json.dumps(asdict(self._record)) + "\n", encoding="utf-8")
            os.replace(temporary, self.place / WRITER_FILE)


@contextmanager
def opening(run: Path) -> Iterator[None]:
    """Hold a RUN open: one process at a time creates, checks, repairs, extends or assembles it.

    Raises:
        EvalkitError: the folder cannot be made or written to.
    """
    lock = None
    while lock is None:
        with suppress(FileNotFoundError):  # set aside while this process waited
            lock = locks.take(make_folder(run) / OPENING_LOCK, wait=True)
    try:
        yield
    finally:
        if (run / WRITERS_LOCK).exists():
            lock.release()
        else:
            lock.remove()


@contextmanager
def nobody_writes(run: Path) -> Iterator[bool]:
    """Provide whether no process writes to a RUN that is held open, and keep it so."""
    lock = locks.take(run / WRITERS_LOCK, patience=_MOMENT)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            with suppress(OSError):
                (run / WRITER_FILE).unlink(missing_ok=True)  # of a lone one that was killed
            lock.remove()


def live_writers(run: Path) -> dict[str, Record]:
    """Return the records of the processes that write to a RUN, by name; ``""`` writes alone."""
    found = {}
    if locks.is_held(run / WRITERS_LOCK):
        found[""] = read_record(run) or Record()
    for part in part_folders(run):
        if locks.is_held(part / PART_LOCK):
            found[part.name] = read_record(part) or Record()
    return found


def process_seconds(run: Path) -> float:
    """Return the seconds that units of the parts of a RUN took, summed over processes."""
    return sum(record.seconds for record in map(read_record, part_folders(run)) if record)


def read_record(folder: Path) -> Record | None:
    """Return what ``writer.json`` in a folder says; None where there is none that can be read."""
    path = folder / WRITER_FILE
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    return Record(**{field.name: _fitting(content, field) for field in fields(Record)})


def _fitting(content: dict[str, Any], field: Any) -> Any:
    """Return an entry where it is of the kind of a field, else the field's default."""
    value, default = content.get(field.name, field.default), field.default
    kind = field.type.split(" ")[0]
    if isinstance(value, str) and kind == "str":
        return printable(value)
    if isinstance(value, bool) or kind in ("str", "bool"):
        return value if isinstance(value, bool) and kind == "bool" else default
    if not isinstance(value, (int, float)) or not 0 <= value < 2**63:
        return default
    return float(value) if kind == "float" else value if isinstance(value, int) else default


def now() -> str:
    """Return the time as ``run.json`` writes it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def occupied(run: Path, alone: bool, name: str | None = None) -> EvalkitError:
    """Return the error of a start on a folder that others write to.

    Args:
        run: the folder of the run.
        alone: whether the start is to write alone.
        name: of its part, where that is written already.
    """
    live = live_writers(run)
    chosen = {key: one for key, one in live.items() if name is None or key == name} or live
    told = [
        (f"{key}, " if key else "")
        + (f"process {one.pid} on {one.host} since {one.started}" if one.pid else "a process")
        for key, one in chosen.items()
    ]
    more = f" and {len(told) - 1} more" if len(told) > 1 else ""
    who = told[0] + more if told else "a process"
    what = "that no other process writes to" if alone else "that this process may write to"
    if name is not None:
        what = f"whose part '{name}' no other process writes"
    return EvalkitError(
        f"expected a run folder {what}, found '{run}' written by {who}; wait until it has ended, "
        "end it first, or choose another folder"
    )
