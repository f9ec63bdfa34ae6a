"""Units that are put into a RUN folder: one is durable before the next one starts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from evalkit.errors import EvalkitError
from evalkit.storage import lost_rows
from evalkit.storage.columns import table_of
from evalkit.storage.json_files import printable
from evalkit.storage.lost_rows import Pair, scored_pairs
from evalkit.storage.parts import ALONE, Tables, make_part
from evalkit.storage.rows import Cell, Failure
from evalkit.storage.run_folder import (
    PROVENANCE_FILE,
    append_failure,
    append_rows,
    asked_for,
    cells,
    create_run,
    hashes_in,
    read_all,
    read_provenance,
    repair,
    repair_part,
    sort_tables,
    update_provenance,
)
from evalkit.storage.run_json import wants_parquet
from evalkit.storage.writers import Writer, nobody_writes, now, opening, process_seconds
from evalkit.study.execute import Rows
from evalkit.study.identity import check_same_data
from evalkit.study.plan import Unit


class Store:
    """A RUN folder that units are put into; it is made with the first one.

    A store that writes alone keeps others out while it is held; one of several has a part of the
    folder of its own, and the last of them to close puts the tables together.

    Args:
        folder: the folder of the run.
        provenance: what ``run.json`` says when the run is made.
        writer: what this process is called beside others that write to the folder at the same
            time, such as ``rank-0003``; None where it writes alone.
        join: checks that a run which is there is the same study, and extends it where it is asked
            for more; called while the folder is held open.

    Attributes:
        finished: the pairs (method, damping) that each finished cell has a row of.
        data: SHA-256 of the data of each batch, where it is known.
        notes: sentences about the folder, for whoever started this.
    """

    def __init__(
        self,
        folder: Path,
        provenance: dict[str, Any],
        writer: str | None = None,
        join: Callable[[], None] | None = None,
    ) -> None:
        self.folder = folder
        self.provenance = provenance
        self.finished: dict[lost_rows.Cell, set[Pair]] = {}
        self.data: dict[int, str] = {}
        self.notes: tuple[str, ...] = ()
        self._writer = Writer(folder, writer)
        self._place = self._writer.place
        self._join = join
        self._known = self.exists
        if self._known and join is None:
            self._read()

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.folder / PROVENANCE_FILE).exists()

    def hold(self) -> None:
        """Become a writer to the folder, which is made when missing; nothing where this is one.

        Raises:
            EvalkitError: another process writes there, or the folder cannot be written to.
        """
        if self._writer.writes:
            return
        with opening(self.folder):
            self._writer.begin()
            try:
                self._open()
            except BaseException:
                self._writer.release()
                raise
        if not self._writer.locked:
            self.notes = (
                *self.notes,
                f"the file system of '{self.folder}' has no locks: start nothing else there before "
                "this has ended",
            )

    def release(self) -> None:
        """Stop writing: others may start. What was put is kept."""
        self._writer.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def beginning(self, unit: Unit) -> None:
        """Let ``evalkit status`` say which unit is scored now.

        A process that is alone makes no folder for that.
        """
        if self._writer.name is not None:
            self.hold()
        if self._writer.writes:
            self._writer.scores(unit.cell.checkpoint, unit.cell.batch)

    def put(self, unit: Unit, rows: Rows) -> None:
        """Write the rows of a unit; they are on the disk when this returns.

        Raises:
            EvalkitError: the batch held other data before, or the folder cannot be written to.
        """
        self.hold()
        cell, digest = unit.cell, str(rows.batches["data_sha256"][0])
        check_same_data(self.folder, cell.batch, self.data.setdefault(cell.batch, digest), digest)
        append_rows(self._place, rows.scores, rows.batches if unit.is_new else None)
        self.finished.setdefault((cell.checkpoint, cell.batch), set()).update(unit.pairs)
        self._writer.stored()

    def fail(self, unit: Unit, reason: str) -> None:
        """Record that a unit could not be scored; the next start tries it again.

        Args:
            unit: the unit.
            reason: the sentence of the error.

        Raises:
            EvalkitError: the folder cannot be written to.
        """
        self.hold()
        said = " ".join(printable(reason).split())
        # The row says where: so that reasons of several batches are the same text.
        line = Failure(said.removeprefix(f"{unit.place}: "))
        row = {**table_of([unit.cell], Cell), **table_of([line], Failure)}
        append_failure(self._place, row)
        self._writer.stored(failed=True)

    def note(self, entries: Mapping[str, Any]) -> None:
        """Let ``run.json`` say more, that of a run which goes on at once."""
        self.provenance.update(entries)
        if entries and self.exists:
            with opening(self.folder):
                update_provenance(self.folder, **entries)

    def list_checkpoint(self, entry: Mapping[str, Any]) -> None:
        """Let ``run.json`` name a checkpoint, before the first of its rows.

        Args:
            entry: what it says of the checkpoint; one of the same name is replaced.
        """
        listed = self.provenance["checkpoints"]
        if entry in listed:
            return
        others = [item for item in listed if item["name"] != entry["name"]]
        self.provenance["checkpoints"] = [*others, entry]
        if self.exists:
            with opening(self.folder):
                update_provenance(self.folder, checkpoints=self.provenance["checkpoints"])

    def close(self, seconds: float) -> None:
        """End the writing; put the tables together where nothing is left for other processes.

        The run is marked as finished if it has all that it was ever asked for.

        Args:
            seconds: that were spent since it was opened.
        """
        if not self.exists:
            return
        alone = self._writer.name is None
        if alone:
            self.hold()
        else:
            self._writer.end()  # before the folder is opened: whoever closes last finds nobody
        with opening(self.folder):
            if alone:
                self._settle(seconds)
                self._writer.end()
                return
            with nobody_writes(self.folder) as last:
                if last:
                    self._settle(None)

    def _settle(self, seconds: float | None) -> None:
        """Assemble the tables, those of several processes once every unit is done or failed.

        Args:
            seconds: that a process alone spent; None for one of several.
        """
        provenance = read_provenance(self.folder)
        names = {item["name"] for item in provenance["checkpoints"]}
        batches = provenance["settings"]["batches"]
        asked = set(itertools.product(*asked_for(provenance)))
        found = read_all(self.folder)
        scored = scored_pairs(found.scores, found.batches)
        done = {cell for cell, rows in scored.items() if asked <= rows}
        left = len(names) * batches - _count(done, names, batches)
        failed = _count(cells(found.failures) - done, names, batches)
        if seconds is None and left > failed:
            return
        spent = process_seconds(self.folder) if seconds is None else seconds
        sort_tables(self.folder)
        if left or provenance.get("finished"):
            return
        before, started = provenance.get("seconds"), provenance.get("started")
        spent += before if isinstance(before, int | float) and before > 0 else 0.0
        # A clock that was set back lets no run end before it began.
        ended = max(now(), started if isinstance(started, str) else "")
        update_provenance(self.folder, finished=ended, seconds=round(spent, 3))

    def _open(self) -> None:
        """Make the run, or join it; its folder is held open, and this process may write."""
        if not self.exists:
            create_run(self.folder, self.provenance)
            self._known = True
            self._choose_place()
            return
        if self._join is not None:
            self._join()
        elif not self._known:
            raise EvalkitError(
                f"expected a folder without a run, found a run in '{self.folder}' that another "
                "process has made meanwhile; choose another folder"
            )
        self._known = True
        if self._writer.name is None:
            repair(self.folder)
        found = self._read()
        if self._writer.name is not None:
            repair_part(self._writer.place, found.batches)
        self._choose_place()

    def _choose_place(self) -> None:
        """Let rows go to a part where the run's own tables are Parquet, which do not grow."""
        alone = self._writer.name is None
        parquet = alone and wants_parquet(read_provenance(self.folder))
        self._place = make_part(self.folder, ALONE) if parquet else self._writer.place

    def _read(self) -> Tables:
        found = read_all(self.folder)
        self.finished = scored_pairs(found.scores, found.batches)
        self.data = hashes_in(found.batches)
        return found


def _count(found: Collection[lost_rows.Cell], names: Collection[str], batches: int) -> int:
    """Return how many of some cells are among those of a study."""
    return sum(name in names and batch < batches for name, batch in found)
