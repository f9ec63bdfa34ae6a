"""The store of a study: a RUN folder, where a unit is durable before the next one starts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalkit.settings import Settings
from evalkit.storage import lost_rows
from evalkit.storage.lost_rows import Pair, scored_pairs
from evalkit.storage.run_folder import (
    PROVENANCE_FILE,
    append_rows,
    asked_for,
    create_run,
    drawn_hashes,
    place_checkpoints,
    read_provenance,
    read_tables,
    repair,
    sort_tables,
    update_provenance,
)
from evalkit.study.batches import data_hash, draw
from evalkit.study.execute import Rows
from evalkit.study.identity import check_same_data, check_same_run, extension, places
from evalkit.study.plan import Unit
from evalkit.study.provenance import code_of, now
from evalkit.tasks import Samples, Task
from evalkit.tasks.samples import ItemSamples


class Store:
    """A RUN folder that units are put into; it is made with the first one.

    Args:
        folder: the folder of the run; new, or whole (:func:`evalkit.storage.run_folder.repair`).
        provenance: what ``run.json`` says when the run is made.

    Attributes:
        finished: the pairs (method, damping) that each finished cell has a row of.
        data: SHA-256 of the data of each batch, where it is known.
    """

    def __init__(self, folder: Path, provenance: dict[str, Any]) -> None:
        self.folder = folder
        self.provenance = provenance
        self.finished: dict[lost_rows.Cell, set[Pair]] = {}
        self.data: dict[int, str] = {}
        if self.exists:
            self.finished = scored_pairs(*read_tables(folder))
            self.data = drawn_hashes(folder)

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.folder / PROVENANCE_FILE).exists()

    def put(self, unit: Unit, rows: Rows) -> None:
        """Write the rows of a unit; they are on the disk when this returns.

        Raises:
            EvalkitError: the batch held other data before, or the folder cannot be written to.
        """
        cell, digest = unit.cell, str(rows.batches["data_sha256"][0])
        check_same_data(self.folder, cell.batch, self.data.setdefault(cell.batch, digest), digest)
        if not self.exists:
            create_run(self.folder, self.provenance)
        append_rows(self.folder, rows.scores, rows.batches if unit.is_new else None)
        self.finished.setdefault((cell.checkpoint, cell.batch), set()).update(unit.pairs)

    def note(self, entries: Mapping[str, Any]) -> None:
        """Let ``run.json`` say more, that of a run which goes on at once."""
        self.provenance.update(entries)
        if entries and self.exists:
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
            update_provenance(self.folder, checkpoints=self.provenance["checkpoints"])

    def close(self, seconds: float) -> None:
        """Sort the tables, and mark the run as finished if it has all that it was ever asked for.

        Args:
            seconds: that were spent since it was opened.
        """
        sort_tables(self.folder)
        provenance = read_provenance(self.folder)
        if provenance.get("finished"):
            return
        names = {item["name"] for item in provenance["checkpoints"]}
        batches = provenance["settings"]["batches"]
        asked = set(itertools.product(*asked_for(provenance)))
        done = sum(
            name in names and batch < batches and asked <= rows
            for (name, batch), rows in self.finished.items()
        )
        if done == len(names) * batches:
            seconds += provenance.get("seconds") or 0.0
            update_provenance(self.folder, finished=now(), seconds=round(seconds, 3))


def open_store(
    folder: Path,
    provenance: dict[str, Any],
    task: Task,
    samples: Samples | ItemSamples,
    settings: Settings,
) -> Store:
    """Return the store of a study that starts, goes on, or is extended.

    Args:
        folder: the folder of the run; new, or one of the same study on the same data.
        provenance: what ``run.json`` would say if the run started now.
        task: whose code rows depend on.
        samples: that batches are drawn from.
        settings: the settings of the study.

    Raises:
        EvalkitError: the folder holds a run that differs in more than what may be added.
    """
    if not (folder / PROVENANCE_FILE).exists():
        return Store(folder, provenance)
    earlier = read_provenance(folder)
    known, code = asked_for(earlier)[0], provenance.get("code", {})
    recorded = earlier.get("code")
    both = {name: code[name] for name in code if isinstance(recorded, dict) and name in recorded}
    needed = code_of(task, [name for name in settings.methods if name in known])
    check_same_run(folder, earlier, provenance, {**needed, **both})
    for batch, digest in sorted(drawn_hashes(folder).items()):
        found = data_hash(*draw(samples, settings.batch_size, settings.seed, batch))
        check_same_data(folder, batch, digest, found)
    repair(folder)
    changes = extension(earlier, provenance)
    if changes:
        place_checkpoints(folder, places(provenance))
        update_provenance(folder, **changes)
    return Store(folder, provenance)
