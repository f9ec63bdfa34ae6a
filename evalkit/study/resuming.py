"""How a start goes on with an earlier one: what is there, what is added, when all is done."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.settings import Settings
from evalkit.storage.lost_rows import scored_pairs
from evalkit.storage.run_folder import (
    PROVENANCE_FILE,
    asked_for,
    drawn_hashes,
    place_checkpoints,
    read_provenance,
    read_tables,
    repair,
    update_provenance,
)
from evalkit.study.cells import data_hash, draw, now
from evalkit.study.identity import check_same_data, check_same_run, extension, places
from evalkit.study.source_files import sources
from evalkit.tasks import Samples, Task
from evalkit.tasks.samples import ItemSamples
from evalkit.updates.registry import function_of


@dataclass(frozen=True)
class Held:
    """What a folder holds of a run.

    Attributes:
        rows: the pairs (method, damping) that each finished cell, a checkpoint and a batch, has a
            row of.
        data: SHA-256 of the data of each batch, where it is known.
    """

    rows: dict[tuple[str, int], set[tuple[str, float]]] = field(default_factory=dict)
    data: dict[int, str] = field(default_factory=dict)

    def whole(self, names: set[str], batches: int, pairs: set[tuple[str, float]]) -> int:
        """Return the number of cells that have all pairs, among checkpoints and first batches."""
        return sum(
            name in names and batch < batches and pairs <= rows
            for (name, batch), rows in self.rows.items()
        )


def code_of(task: Task, methods: Iterable[str]) -> dict[str, str]:
    """Return the user's files that rows of these methods depend on, by hash."""
    parts = (*task.parts(), *map(function_of, methods))
    return sources(parts)


def resume(
    folder: Path,
    provenance: dict[str, Any],
    task: Task,
    samples: Samples | ItemSamples,
    settings: Settings,
) -> Held:
    """Return what an earlier start finished; it must have been the same study, on the same data.

    Raises:
        EvalkitError: the folder holds a run that differs in more than what may be added.
    """
    if not (folder / PROVENANCE_FILE).exists():
        return Held()
    earlier = read_provenance(folder)
    known, code = asked_for(earlier)[0], provenance.get("code", {})
    recorded = earlier.get("code")
    both = {name: code[name] for name in code if isinstance(recorded, dict) and name in recorded}
    needed = code_of(task, [name for name in settings.methods if name in known])
    check_same_run(folder, earlier, provenance, {**needed, **both})
    data = drawn_hashes(folder)
    for batch, digest in sorted(data.items()):
        found = data_hash(*draw(samples, settings.batch_size, settings.seed, batch))
        check_same_data(folder, batch, digest, found)
    repair(folder)
    changes = extension(earlier, provenance)
    if changes:
        place_checkpoints(folder, places(provenance))
        update_provenance(folder, **changes)
    return Held(scored_pairs(*read_tables(folder)), data)


def finish(folder: Path, held: Held, seconds: float) -> None:
    """Mark a run as finished that was not, if it has every row that it was ever asked for."""
    provenance = read_provenance(folder)
    if provenance.get("finished"):
        return
    names = {item["name"] for item in provenance["checkpoints"]}
    batches = provenance["settings"]["batches"]
    asked = set(itertools.product(*asked_for(provenance)))
    done = held.whole(names, batches, asked)
    if done == len(names) * batches:
        seconds += provenance.get("seconds") or 0.0
        update_provenance(folder, finished=now(), seconds=round(seconds, 3))
