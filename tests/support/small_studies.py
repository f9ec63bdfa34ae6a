"""A tiny task with saved checkpoints, and studies of it, for the tests of how runs go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.checkpoints import open_trajectory
from evalkit.settings import Settings
from evalkit.storage.parquet import own_path
from evalkit.study.running import run_study
from evalkit.tasks import Task

SMALL = Settings(methods=("sgd", "ief"), batches=2, batch_size=8)


def model() -> nn.Module:
    return nn.Linear(8, 3)


def tensors(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(64, 8, generator=generator)
    return inputs, torch.randint(3, (64,), generator=generator)


def task(data: Callable[[], Any] = tensors) -> Task:
    return Task(model=model, data=data, name="small")


def task_on(inputs: Tensor, targets: Tensor) -> Task:
    """Return the task on other data, of the same code."""
    return task(lambda: (inputs, targets))


def save_checkpoint(folder: Path, step: int) -> None:
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(step)
    state = {
        name: torch.randn(value.shape, generator=generator)
        for name, value in model().state_dict().items()
    }
    torch.save(state, folder / f"step-{step}.pt")


def study(
    folder: Path, settings: Settings = SMALL, steps: tuple[int, ...] = (1, 2), **more: Any
) -> tuple[bytes, bytes]:
    """Score the checkpoints of some steps into folder/run and return its tables."""
    checkpoints = folder / "checkpoints"
    for step in steps:
        save_checkpoint(checkpoints, step)
    chosen = more.pop("task", task())
    run_study(open_trajectory(checkpoints), chosen, settings, folder / "run", **more)
    return tables(folder)


def tables(folder: Path) -> tuple[bytes, bytes]:
    """Return the files of the tables, in the form that they have."""
    scores, batches = (own_path(folder / "run" / name) for name in ("scores.csv", "batches.csv"))
    return scores.read_bytes(), batches.read_bytes()


MINE = """
import evalkit
from tests.support.small_studies import model, tensors

def build():
    return model()

task = evalkit.Task(model=build, data=tensors, name="small")
"""
"""A task of one's own, as a file."""
