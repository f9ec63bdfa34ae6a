"""A run with everything that an export has to tell apart, and exports read by the real tools."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.written_runs import PROVENANCE, cell, score_row, write_run

KFAC = "kfac:labels=exact"
DAMPINGS = (1e-12, 1e-2)
CHECKPOINTS = (("start", 0), ("middle", 92), ("end", 920))
TOLD = {
    **PROVENANCE,
    "settings": {"methods": ["sgd", "ef", KFAC], "dampings": list(DAMPINGS), "seed": 0},
    "checkpoints": [
        {
            "name": name,
            "step": step,
            "progress": step / 920,
            "sha256": "ab" * 32,
            "training_loss": 1 / (1 + step),
        }
        for name, step in CHECKPOINTS
    ],
}
Curve = dict[int, float]
"""Values by step."""


def exported_run(folder: Path) -> Path:
    """Write two batches of three checkpoints at two dampings.

    EF is infinite at the end; KFAC at the smaller damping is not to be relied on in the middle.
    """
    cells = [
        cell(name, step, step / 920, batch, _rows(name, batch), loss=1.0 + batch)
        for name, step in CHECKPOINTS
        for batch in range(2)
    ]
    return write_run(folder, cells, TOLD)


def _rows(name: str, batch: int) -> list[dict]:
    rows = []
    for damping in DAMPINGS:
        wrong = name == "middle" and damping == DAMPINGS[0]
        told: dict[str, Any] = {"damping": damping, "dtype": "float64", "error": 1e-9}
        rows += [
            score_row("sgd", 1.0, **told),
            score_row("ef", math.inf if name == "end" else 3.0, **told),
            score_row(KFAC, 0.75 * 4**batch + damping, **{**told, "error": 0.5 if wrong else 1e-9}),
        ]
    return rows


def geometric(*values: float) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def of_tensorboard(folder: Path) -> tuple[dict[str, Curve], dict[str, str]]:
    """Return curves as ``quantity/run``, and texts by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves, texts = {}, {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        events = EventAccumulator(str(place)).Reload()
        for tag in events.Tags()["scalars"]:
            curves[f"{tag}/{place.name}"] = {one.step: one.value for one in events.Scalars(tag)}
        for tag in events.Tags()["tensors"]:
            (text,) = events.Tensors(tag)
            texts[f"{place.name}/{tag}"] = text.tensor_proto.string_val[0].decode()
    return curves, texts


def of_wandb(folder: Path) -> tuple[dict[str, Curve], Mapping[str, Any], str]:
    """Return curves, configuration and notes of the one offline run in a folder."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    curves: dict[str, Curve] = {}
    config: dict[str, Any] = {}
    notes = ""
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            notes = record.run.notes
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            curves.setdefault(name, {})[record.history.step.num] = json.loads(item.value_json)
    return curves, config, notes


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file of wandb: a log as LevelDB has it, behind a header of its own."""
    assert content[:4] == b":W&B"
    block, place, record = 32768, 7, b""
    while place + 7 <= len(content):
        left = block - place % block
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def of_mlflow(folder: Path) -> tuple[dict[str, Curve], Any]:
    """Return the curves and the record of the one run in a store."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=folder.as_uri())
    experiments = [one for one in client.search_experiments() if one.name != "Default"]
    (run,) = client.search_runs([one.experiment_id for one in experiments])
    curves = {
        name: {one.step: one.value for one in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }
    return curves, run
