"""Weights & Biases: one run, written offline, with a section of charts for each quantity."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evalkit.errors import EvalkitError
from evalkit.export.content import Content
from evalkit.export.environment import environment
from evalkit.extras import required

PROJECT = "evalkit"
STEP = "train/global_step"
"""The step of the training, under the name that the Trainer of transformers logs it by."""


def writer() -> Callable[[Content, Path], tuple[str, ...]]:
    """Return the function that writes the offline run of a run into a folder.

    Raises:
        EvalkitError: there is no wandb, or a run of it is at work.
    """
    with environment({"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}):
        wandb = required("wandb", "an export to it", "export")
    if wandb.run is not None:
        raise EvalkitError(
            f"expected no run of wandb at work, found '{wandb.run.name}'; finish it first"
        )

    def write(content: Content, folder: Path) -> tuple[str, ...]:
        with tempfile.TemporaryDirectory(prefix="evalkit-") as aside:
            places = ("CONFIG", "CACHE", "DATA", "ARTIFACT")
            values = {
                "WANDB_MODE": "offline",
                "WANDB_SILENT": "true",
                "WANDB_ERROR_REPORTING": "false",
                "WANDB_DIR": str(folder),
                **{f"WANDB_{place}_DIR": aside for place in places},
            }
            with environment(values):
                _write(wandb, content, folder)
        return content.notes

    return write


def _write(wandb: Any, content: Content, folder: Path) -> None:
    # What it would record of this process is not of the run.
    settings = wandb.Settings(
        mode="offline",
        root_dir=str(folder),
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    run = wandb.init(
        project=PROJECT,
        name=content.name,
        group=content.task,
        job_type="score",
        notes="\n".join(content.notes) or None,
        config={**content.provenance, "curves": dict(content.labels)},
        settings=settings,
    )
    try:
        run.define_metric("*", step_metric=STEP, step_sync=True)
        rows: dict[int, dict[str, float]] = {}
        for one in content.series:
            for point in one.points:
                rows.setdefault(point.step, {})[one.name] = point.value
        for step in sorted(rows):
            run.log({**rows[step], STEP: step}, step=step)
    finally:
        run.finish()
        wandb.teardown()
