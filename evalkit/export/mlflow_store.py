"""MLflow: one run in a local store of files, which needs neither a server nor a database."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from evalkit.export.content import Content, parameters, provenance_text
from evalkit.export.environment import environment
from evalkit.extras import required

_Item = TypeVar("_Item")

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
_LONGEST = 6000
"""Characters of a parameter, and of a tag."""
_LONGEST_NAME = 250
_AT_ONCE = 100
"""Entries of one kind that a store takes in a batch."""


def writer() -> Callable[[Content, Path], tuple[str, ...]]:
    """Return the function that writes the store of a run into a folder.

    Raises:
        EvalkitError: there is no mlflow.
    """
    with environment(_QUIET):
        tracking = required("mlflow.tracking", "an export to MLflow", "export")
        entities = required("mlflow.entities", "an export to MLflow", "export")

    def write(content: Content, folder: Path) -> tuple[str, ...]:
        # A client of this process may know the place from an earlier export, and does not make it.
        (folder / ".trash").mkdir()
        with environment(_QUIET):
            _write(tracking.MlflowClient(tracking_uri=folder.as_uri()), entities, content)
        return content.notes

    return write


def _write(client: Any, entities: Any, content: Content) -> None:
    experiment = client.create_experiment(content.task[:_LONGEST_NAME])
    run = client.create_run(experiment, run_name=content.name).info.run_id
    at = int(time.time() * 1000)
    metrics = [
        entities.Metric(one.name, point.value, at, point.step)
        for one in content.series
        for point in one.points
    ]
    told = {
        re.sub(r"[^\w.-]", "_", name).strip(".")[:_LONGEST_NAME] or "entry": text
        for name, text in parameters(content.provenance)
        if len(text) <= _LONGEST
    }
    labels = {f"curves.{curve}": label for curve, label in content.labels.items()}
    params = [entities.Param(name, text) for name, text in {**told, **labels}.items()]
    for chosen in _parts(metrics):
        client.log_batch(run, metrics=chosen)
    for chosen in _parts(params):
        client.log_batch(run, params=chosen)
    if content.notes:
        client.set_tag(run, NOTE, "\n".join(content.notes)[:_LONGEST])
        client.log_text(run, "\n".join(content.notes) + "\n", "notes.txt")
    client.log_text(run, provenance_text(content.provenance) + "\n", "run.json")
    client.set_terminated(run)


def _parts(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]
