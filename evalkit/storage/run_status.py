"""How far a RUN is: what is done, what runs, and in which processes. Nothing is written."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from evalkit.storage import locks
from evalkit.storage.lost_rows import scored_pairs
from evalkit.storage.parts import ALONE, part_folders
from evalkit.storage.run_folder import asked_for, cells, failure_counts, read_all, read_provenance
from evalkit.storage.writers import PART_LOCK, WRITERS_LOCK, Record, read_record


@dataclass(frozen=True)
class Process:
    """A process that writes to a RUN, or did.

    Attributes:
        writer: what it is called beside others.
        state: ``"running"``, ``"ended"`` where it went to its end, ``"gone"`` where it was ended
            before, and ``"unknown"`` where the file system has no locks to tell.
        host: its machine.
        pid: its number there.
        started: when it began.
        done: batches that it stored.
        failed: batches that it could not score.
        checkpoint: that it scores now; None for none.
        batch: that it scores now.
        since: when it began with that.
        seconds_running: since then, by the clock of this machine.
        seconds_per_batch: as measured; None where nothing is done yet.
    """

    writer: str
    state: str
    host: str
    pid: int
    started: str
    done: int
    failed: int
    checkpoint: str | None
    batch: int | None
    since: str | None
    seconds_running: float | None
    seconds_per_batch: float | None


@dataclass(frozen=True)
class RunStatus:
    """How far a RUN is; the four counts add up to ``total``.

    Attributes:
        total: cells (a checkpoint and a batch) that were asked for.
        done: that have all their rows.
        running: that are scored now.
        left: that nobody has begun.
        failed: that could not be scored, and are not tried now.
        finished: when the run was, if it is.
        seconds_per_batch: as measured, over all processes; None where nothing is.
        seconds_left: for all that is left and running in the processes there are, in one where
            there is none; None where nothing is measured.
        reasons: how many failed by reason.
        processes: that write, or were ended before the tables were put together.
    """

    total: int
    done: int
    running: int
    left: int
    failed: int
    finished: str | None
    seconds_per_batch: float | None
    seconds_left: float | None
    reasons: Mapping[str, int]
    processes: tuple[Process, ...]


def run_status(run: Path) -> RunStatus:
    """Return how far a RUN is; others may write to it meanwhile.

    Whether a process lives is told by its lock, not by a clock.

    Raises:
        EvalkitError: there is no run, or it cannot be read.
    """
    provenance = read_provenance(run)
    processes = _processes(run)
    tables = read_all(run)  # after the processes: what they finish meanwhile counts as done
    asked = set(itertools.product(*asked_for(provenance)))
    scored = scored_pairs(tables.scores, tables.batches)
    names, batches = _asked_cells(provenance)
    done = {cell for cell, rows in scored.items() if asked <= rows and _is_in(cell, names, batches)}
    now = {
        (one.checkpoint, one.batch)
        for one in processes
        if one.state in ("running", "unknown")
        and one.checkpoint is not None
        and one.batch is not None
    }
    running = {cell for cell in now if _is_in(cell, names, batches)} - done
    failed = {cell for cell in cells(tables.failures) if _is_in(cell, names, batches)}
    failed -= done | running
    total = len(names) * batches
    left = max(0, total - len(done) - len(running) - len(failed))
    each = _seconds_each([record for _, _, record in _records(run)])
    alive = sum(one.state == "running" for one in processes)
    finished = provenance.get("finished")
    return RunStatus(
        total,
        len(done),
        len(running),
        left,
        len(failed),
        finished if isinstance(finished, str) else None,
        each,
        None if each is None else each * (left + len(running)) / max(1, alive),
        failure_counts(tables.failures),
        processes,
    )


def _records(run: Path) -> list[tuple[str, Path, Record]]:
    """Return who writes or did, the file of its lock, and its record."""
    places = [(ALONE, run, run / WRITERS_LOCK)]
    places += [(part.name, part, part / PART_LOCK) for part in part_folders(run)]
    found = [(name, lock, read_record(place)) for name, place, lock in places]
    return [(name, lock, record) for name, lock, record in found if record is not None]


def _processes(run: Path) -> tuple[Process, ...]:
    return tuple(_process(*one) for one in _records(run))


def _process(name: str, lock: Path, record: Record) -> Process:
    held = locks.is_held(lock)
    state = "ended" if record.ended else {True: "running", False: "gone", None: "unknown"}[held]
    at = record if state in ("running", "unknown") else Record()
    return Process(
        name,
        state,
        record.host,
        record.pid,
        record.started,
        record.units,
        record.failed,
        at.checkpoint,
        at.batch,
        at.since,
        _seconds_since(at.since),
        _seconds_each([record]),
    )


def _seconds_each(records: list[Record]) -> float | None:
    units = sum(record.units + record.failed for record in records)
    return sum(record.seconds for record in records) / units if units else None


def _seconds_since(time: str | None) -> float | None:
    """Return the seconds since a time, 0 where it is not past by this clock."""
    if time is None:
        return None
    try:
        since = datetime.fromisoformat(time)
        return max(0.0, (datetime.now(timezone.utc) - since).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _asked_cells(provenance: Mapping[str, Any]) -> tuple[set[str], int]:
    """Return the checkpoints and the number of batches that ``run.json`` lists."""
    settings, listed = provenance.get("settings"), provenance.get("checkpoints")
    batches = settings.get("batches") if isinstance(settings, Mapping) else None
    names = {
        str(item["name"])
        for item in (listed if isinstance(listed, list) else ())
        if isinstance(item, Mapping) and "name" in item
    }
    return names, batches if isinstance(batches, int) and batches > 0 else 0


def _is_in(cell: tuple[str | None, int | None], names: set[str], batches: int) -> bool:
    return cell[0] in names and cell[1] is not None and 0 <= cell[1] < batches
