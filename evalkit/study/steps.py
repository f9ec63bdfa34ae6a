"""The optimizers of a study's checkpoints: verified and described before the first score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evalkit.checkpoints import Checkpoint
from evalkit.checkpoints.optimizer_files import SavedOptimizer, read_optimizer
from evalkit.errors import EvalkitError
from evalkit.evaluation.wrapped import evaluated_module
from evalkit.training.saved_optimizers import check_class, restored
from evalkit.updates.optimizer_step import unwrapped
from evalkit.updates.parser import parse
from evalkit.updates.registry import takes_optimizer


@dataclass(frozen=True, eq=False)
class SavedSteps:
    """The optimizers of checkpoints, each read when its checkpoint is scored.

    Attributes:
        model: whose parameters they are of.
        class_name: what the caller says that they are; None to go by their settings.
        entries: what ``run.json`` says of each.
    """

    model: nn.Module
    class_name: str | None
    entries: list[dict[str, Any]]

    def at(self, checkpoint: Checkpoint) -> torch.optim.Optimizer:
        """Return the optimizer of a checkpoint.

        Raises:
            EvalkitError: its file is not what it was, or as :func:`open_steps`.
        """
        saved, optimizer = _opened(checkpoint, self.model, self.class_name)
        digest = next(e["sha256"] for e in self.entries if e["checkpoint"] == checkpoint.name)
        if saved.sha256 != digest:
            raise EvalkitError(
                f"expected '{saved.path}' to stay as it is while it is scored, found another "
                "content; score again when nothing writes to it"
            )
        return optimizer


def open_steps(
    checkpoints: Sequence[Checkpoint],
    methods: Sequence[str],
    model: nn.Module,
    class_name: str | None = None,
) -> SavedSteps | None:
    """Return the optimizers of checkpoints, all verified; None where no method needs them.

    Args:
        checkpoints: that are scored.
        methods: names, with settings if wanted.
        model: that is scored.
        class_name: see :func:`evalkit.training.saved_optimizers.restored`.

    Raises:
        EvalkitError: a checkpoint has no optimizer that fits, or nothing needs the one that is
            given.
    """
    if not any(takes_optimizer(parse(name)[0]) for name in methods):
        if class_name is not None:
            raise EvalkitError(
                "expected the method 'optimizer' beside `optimizer`, found none in "
                f"{', '.join(methods)}; add it to `methods`, or leave `optimizer` out"
            )
        return None
    class_name = None if class_name is None else check_class(class_name)
    inner, entries = evaluated_module(model), []
    for checkpoint in checkpoints:
        saved, optimizer = _opened(checkpoint, inner, class_name)
        entries.append(_entry(checkpoint, saved, optimizer))
    return SavedSteps(inner, class_name, entries)


def _opened(
    checkpoint: Checkpoint, model: nn.Module, class_name: str | None
) -> tuple[SavedOptimizer, torch.optim.Optimizer]:
    saved = read_optimizer(checkpoint)
    return saved, unwrapped(restored(saved, model, class_name))


def _entry(
    checkpoint: Checkpoint, saved: SavedOptimizer, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    kind = type(optimizer)
    return {
        "checkpoint": checkpoint.name,
        "file": saved.path.name,
        "sha256": saved.sha256,
        "class": f"{kind.__module__.split('.')[0]}.{kind.__qualname__}",
        "groups": [
            {key: _plain(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ],
    }


def _plain(value: Any) -> Any:
    """Return a setting as JSON has it."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
