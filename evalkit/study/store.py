"""The store of a study: a RUN folder that starts, goes on, or is extended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from evalkit.errors import EvalkitError
from evalkit.extras import required
from evalkit.settings import Settings
from evalkit.storage.run_folder import (
    asked_for,
    drawn_hashes,
    place_checkpoints,
    read_provenance,
    update_provenance,
)
from evalkit.storage.run_json import places_of, wants_parquet
from evalkit.storage.set_aside import set_aside
from evalkit.study.batches import data_hash, draw
from evalkit.study.identity import check_same_data, check_same_run, extension
from evalkit.study.provenance import code_of
from evalkit.study.stored import Store
from evalkit.tasks import Samples, Task
from evalkit.tasks.samples import ItemSamples


def open_store(
    folder: Path,
    provenance: dict[str, Any],
    task: Task,
    samples: Samples | ItemSamples,
    settings: Settings,
    writer: str | None = None,
    fresh: bool = False,
    tables: str | None = None,
) -> Store:
    """Return the store of a study that starts, goes on, or is extended.

    Args:
        folder: the folder of the run; new, or one of the same study on the same data.
        provenance: what ``run.json`` would say if the run started now.
        task: whose code rows depend on.
        samples: that batches are drawn from.
        settings: the settings of the study.
        writer: what this process is called beside others that write to the folder at the same
            time; None where it writes alone.
        fresh: start over: a run that is there is kept under another name, which a note tells. Of
            several processes the first alone may.
        tables: ``"csv"`` or ``"parquet"``: the form of the tables when they are put together; None
            for the one they have, CSV at first.

    Raises:
        EvalkitError: the folder holds a run that differs in more than what may be added, or
            another process writes there.
    """
    kept = set_aside(folder) if fresh else None
    if tables not in (None, "csv", "parquet"):
        raise EvalkitError(f"expected tables as csv or parquet, found '{tables}'; set `tables`")
    if tables == "parquet":
        required("pyarrow", "tables as Parquet", "export")
        provenance["tables"] = tables
    join = partial(_join, folder, provenance, task, settings, tables)
    store = Store(folder, provenance, writer, join)
    if kept is not None:
        store.notes = (f"the earlier run is kept in '{kept}'",)
    if store.exists:
        _check(folder, provenance, task, settings)
        for batch, digest in sorted(drawn_hashes(folder).items()):
            found = data_hash(*draw(samples, settings.batch_size, settings.seed, batch))
            with _or_over():
                check_same_data(folder, batch, digest, found)
        store.hold()
    return store


def _check(
    folder: Path, provenance: Mapping[str, Any], task: Task, settings: Settings
) -> dict[str, Any]:
    """Return what ``run.json`` says of the run that is there.

    Raises:
        EvalkitError: it is another study.
    """
    earlier = read_provenance(folder)
    known, code = asked_for(earlier)[0], provenance.get("code", {})
    recorded = earlier.get("code")
    both = {name: code[name] for name in code if isinstance(recorded, dict) and name in recorded}
    needed = code_of(task, [name for name in settings.methods if name in known])
    with _or_over():
        check_same_run(folder, earlier, provenance, {**needed, **both})
    return earlier


@contextmanager
def _or_over() -> Iterator[None]:
    """Let a refusal say that the study may start over, too."""
    try:
        yield
    except EvalkitError as error:
        raise EvalkitError(
            f"{error}, or start over with `fresh`, which keeps this run under another name"
        ) from error


def _join(
    folder: Path,
    provenance: Mapping[str, Any],
    task: Task,
    settings: Settings,
    tables: str | None,
) -> None:
    """Check that the run that is there is the same study, and extend it by what is asked for."""
    earlier = _check(folder, provenance, task, settings)
    changes = extension(earlier, provenance)
    if changes:
        place_checkpoints(folder, places_of(provenance))
    if tables is not None and wants_parquet(earlier) != (tables == "parquet"):
        changes["tables"] = tables
    if changes:
        update_provenance(folder, **changes)
