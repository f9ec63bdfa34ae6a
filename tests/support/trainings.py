"""A small task with what a training that goes on may forget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evalkit.storage.rows import TrainingStep
from evalkit.tasks import Recipe, Task
from evalkit.training import train

INPUTS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
LABELS = INPUTS[:, :3].argmax(1)
STEPS = 3  # in an epoch


class Traps(nn.Module):
    """Has dropout, batch statistics, and a buffer that is not saved and changes as it trains."""

    count: Tensor

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6) if norm else nn.Identity()
        self.dropout, self.last = nn.Dropout(0.3), nn.Linear(6, 3)
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.register_buffer("fixed", torch.ones(2), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.count += 1
        hidden = self.dropout(torch.tanh(self.norm(self.first(inputs))))
        return self.last(hidden) * (1 + self.count / 100)


def small_task(**changes: Any) -> Task:
    recipe = Recipe(learning_rate=0.05, epochs=4, batch_size=5, checkpoint_every=2)
    settings: dict[str, Any] = {
        "model": Traps,
        "data": lambda: (INPUTS, LABELS),
        "validation": lambda: (INPUTS[:7], LABELS[:7]),
        "recipe": recipe,
        "name": "small",
    }
    return Task(**{**settings, **changes})


class Stopped(Exception):
    pass


def stop_after(number: int) -> Any:
    """Return what interrupts a training after so many of its steps."""

    def stop(row: TrainingStep) -> None:
        if row.step == number:
            raise Stopped

    return stop


def interrupted(folder: Path, step: int, task: Task | None = None, **settings: Any) -> None:
    """Train until a step, no further."""
    with pytest.raises(Stopped):
        train(task or small_task(), folder=folder, on_step=stop_after(step), **settings)
