"""Tasks with a planted problem each, as files of a user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_HEAD = """
import torch
from torch import nn
from torch.nn import functional as F

import evalkit

N, D, C = 24, 6, 3
G = torch.Generator().manual_seed(0)


def data():
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    return x, x[:, :C].argmax(1)


def sequences():
    x = torch.randn(N, 5, D, generator=torch.Generator().manual_seed(1))
    return x, x.mean(1)[:, :C].argmax(1)


def mlp(*layers):
    return nn.Sequential(nn.Linear(D, 16), *layers, nn.Tanh(), nn.Linear(16, C))

"""
_TAIL = """

task = evalkit.Task(model=model, data=data, likelihood="categorical")
"""


@dataclass(frozen=True)
class Planted:
    """A task with one problem.

    Attributes:
        code: of the file, behind what all have.
        status: the exit status.
        check: the name of the finding.
        said: words of what is found.
        cure: words of what to do.
    """

    code: str
    status: int
    check: str
    said: tuple[str, ...]
    cure: tuple[str, ...]

    def written(self, folder: Path) -> str:
        """Write the file and return the specification of its task."""
        return written(folder, self.code)


def written(folder: Path, code: str) -> str:
    """Write the file of a task and return its specification."""
    file = folder / "mine.py"
    tail = "" if "\ntask = " in code else _TAIL
    file.write_text(_HEAD + code + tail, encoding="utf-8")
    return f"{file}:task"
