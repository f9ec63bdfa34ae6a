"""A run written for another tool: into a folder of its own, without a network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evalkit.errors import EvalkitError, reason
from evalkit.export import mlflow_store, parquet_tables, tensorboard_events, wandb_run
from evalkit.export.content import Content, content_of
from evalkit.export.folder import export_folder
from evalkit.export.tools import TOOLS, Tool
from evalkit.registry import suggest
from evalkit.storage.run_folder import Run

EXPORTS_FOLDER = "exports"
_BY_STEP: dict[Tool, Callable[[], Callable[[Content, Path], tuple[str, ...]]]] = {
    "tensorboard": tensorboard_events.writer,
    "wandb": wandb_run.writer,
    "mlflow": mlflow_store.writer,
}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where it lies.
        notes: sentences on what is left out, and on what is not to be relied on.
    """

    folder: Path
    notes: tuple[str, ...]


def export_run(run: Run, to: str, out: str | os.PathLike[str] | None = None) -> Exported:
    """Write a run for another tool.

    Args:
        run: of :func:`evalkit.storage.run_folder.read_run`.
        to: one of :data:`evalkit.export.tools.TOOLS`.
        out: the folder, new, empty or with an earlier export to the same tool in it, which is
            replaced; None for ``exports/TOOL`` in the folder of the run.

    Raises:
        EvalkitError: no such tool, its library is missing, the folder holds anything else, or two
            checkpoints have the same step, unless the tool is ``"parquet"``.
    """
    place = Path(run.folder) / EXPORTS_FOLDER / to if out is None else out
    if to == "parquet":
        write_tables = parquet_tables.writer()
        with export_folder(place, to, run.folder) as folder, _sentences(to):
            notes = write_tables(run, folder)
        return Exported(folder, notes)
    for tool in TOOLS:
        if tool == to:
            write, content = _BY_STEP[tool](), content_of(run)
            with export_folder(place, tool, run.folder) as folder, _sentences(tool):
                notes = write(content, folder)
            return Exported(folder, notes)
    raise EvalkitError(f"unknown tool '{to}' to export to; {suggest(to, TOOLS)}")


@contextmanager
def _sentences(tool: str) -> Iterator[None]:
    """Turn errors of a library into one sentence.

    Raises:
        EvalkitError: the library does not take the run.
    """
    try:
        yield
    except (EvalkitError, OSError, MemoryError):
        raise
    except Exception as error:
        raise EvalkitError(
            f"expected {tool} to take the run, found that it does not ({reason(error)}); export it "
            "to another tool, or install the versions of constraints.txt"
        ) from error
