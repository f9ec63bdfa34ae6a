"""A training that goes on: the same as it began, from the last whole checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evalkit.checkpoints import Checkpoint, load_into
from evalkit.checkpoints.file_names import checkpoint_name
from evalkit.checkpoints.manifest import Entry
from evalkit.errors import EvalkitError, reason, shortened
from evalkit.training.losses import Evaluation
from evalkit.training.random_state import set_random_state
from evalkit.training.states import take_state, unfit

_COMPARED = ("task", "settings", "likelihood", "recipe", "seed", "parameters", "threads", "device")
_BEFORE = {"device": "cpu"}
"""What trainings were begun with that do not say it."""
_ADVICE = {
    "threads": "set OMP_NUM_THREADS to that number, as sums in another order differ",
    "versions": "install that version",
}


def check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a training by other settings than those that it began with.

    Args:
        folder: of the training.
        before: what the training says of itself.
        now: what a manifest would say now.

    Raises:
        EvalkitError: naming the first difference.
    """
    for name, ours, theirs in _differences(_compared(before), _compared(now)):
        kind, _, inner = name.partition(".")
        what = {
            "recipe": f"`{inner}` of",
            "seed": "`seed` of",
            "settings": f"the task's setting '{inner}' to be",
            "device": "`device` of kind",
        }.get(kind, inner or kind)
        raise EvalkitError(
            f"expected {what} {_said(ours)}, with which the training in '{folder}' began, found "
            f"{_said(theirs)}; {_ADVICE.get(kind, 'give the same')}, or choose another `folder`"
        )


def _compared(manifest: Mapping[str, Any]) -> dict[str, Any]:
    said = manifest.get("versions")
    versions = said if isinstance(said, Mapping) else {}
    kept = {name: versions.get(name) for name in ("evalkit", "torch")}
    compared = {name: manifest.get(name, _BEFORE.get(name)) for name in _COMPARED}
    return {**compared, "versions": kept}


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield what differs between two nestings of dicts, with the dotted name of its place."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        if before != now:
            yield name, before, now
        return
    for key in dict.fromkeys((*before, *now)):
        inner = f"{name}.{key}" if name else str(key)
        yield from _differences(before.get(key), now.get(key), inner)


def _said(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else shortened(str(value))


def restore(
    state: Mapping[str, Any],
    path: Path,
    entry: Entry,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    order: torch.Generator,
) -> None:
    """Bring a training to where it was when it saved a checkpoint.

    Args:
        state: as :func:`evalkit.training.states.read_state` returns it.
        path: of the checkpoint.
        entry: what the manifest says of it.
        model, optimizer, scheduler, order: new ones, as the training began with.

    Raises:
        EvalkitError: checkpoint and state are not those of this training at that step.
    """
    load_into(model, _checkpoint(path, entry))
    where = path.parent / (entry.optimizer or "")
    if state["step"] != entry.step:
        raise unfit(where, f"that of step {state['step']}")
    take_state(optimizer, model, state, where)
    try:
        for name, value in state["buffers"].items():
            with torch.no_grad():
                model.get_buffer(name).copy_(value)
        scheduler.load_state_dict(state["scheduler"])
        order.set_state(state["order"])
        set_random_state(state["random"])
    except Exception as error:  # altered states fail in many ways; all mean the same
        raise unfit(where, reason(error)) from error


def _checkpoint(path: Path, entry: Entry) -> Checkpoint:
    return Checkpoint(
        name=checkpoint_name(path),
        path=path,
        step=entry.step,
        epoch=entry.epoch,
        progress=entry.progress,
        sha256=entry.sha256 or "",
    )


def check_evaluation(path: Path, entry: Entry, found: Evaluation) -> None:
    """Refuse to go on where a checkpoint does not do as it did: data or model are others.

    Args:
        path: of the checkpoint.
        entry: what the manifest says of it.
        found: what it does now.

    Raises:
        EvalkitError: the mean loss or the accuracy differs.
    """
    for name, before, now in (
        ("training loss", entry.training_loss, found.training_loss),
        ("validation accuracy", entry.validation_accuracy, found.validation_accuracy),
    ):
        if before is None or now is None:
            same = before is now
        else:  # on other devices than a CPU the last digits may differ
            same = math.isclose(before, now, rel_tol=1e-4, abs_tol=1e-12)
        if not same:
            raise EvalkitError(
                f"expected the {name} {before} at '{path.name}', where the training in "
                f"'{path.parent}' stopped, found {now}; train with the data and the model that it "
                "began with, or choose another `folder`"
            )
