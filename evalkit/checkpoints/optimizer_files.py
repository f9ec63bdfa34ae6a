"""The state of an optimizer in or beside a checkpoint, as training libraries save it.

- ``evalkit train``: ``step-000092.optimizer.pt`` beside the checkpoint;
- Hugging Face Trainer: ``checkpoint-500/optimizer.pt``, and scripts that keep it in a folder alike;
- Lightning: ``optimizer_states`` in the ``.ckpt``;
- scripts: ``{"model": ..., "optimizer": ...}`` in one file.

Files are read as weights are: sizes checked first, and without code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from evalkit.checkpoints.file_names import PICKLE_SUFFIXES
from evalkit.checkpoints.manifest import OPTIMIZER_SUFFIX
from evalkit.checkpoints.tensors import file_hash, read_pickle
from evalkit.checkpoints.trainer_state import TRAINER_STATE
from evalkit.checkpoints.trajectory import Checkpoint
from evalkit.errors import EvalkitError
from evalkit.storage.files import check_regular

_IN_FOLDER = ("optimizer.pt", "optimizer.bin", "optimizer.pth")
_KEYS = ("optimizer_states", "optimizer", "optimizer_state_dict", "optimizer_state", "optim", "opt")
_ADVICE = "copy the checkpoints again with what lies beside them, or leave method 'optimizer' out"


@dataclass(frozen=True, eq=False)
class SavedOptimizer:
    """The state of an optimizer as it was saved.

    Attributes:
        path: the file.
        sha256: of the file.
        state: its ``state_dict()``.
        names: of the parameters of each group, None where the file does not say.
        name: that its builder is registered by, None where ``evalkit train`` did not write it.
        settings: of the builder.
        by_trainer: whether the Hugging Face Trainer wrote it.
    """

    path: Path
    sha256: str
    state: Mapping[str, Any]
    names: list[list[str]] | None = None
    name: str | None = None
    settings: Mapping[str, Any] | None = None
    by_trainer: bool = False

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The settings of each group, and the numbers of its parameters under ``params``."""
        return list(self.state["param_groups"])


def read_optimizer(checkpoint: Checkpoint) -> SavedOptimizer:
    """Return the state of the optimizer at a checkpoint.

    Raises:
        EvalkitError: there is none, there are several, or the file cannot be read.
    """
    path = _find(checkpoint)
    check_regular(path, _ADVICE)
    content = read_pickle(path)
    digest = file_hash(path)
    check_state_hash(path, digest, checkpoint.optimizer_sha256)
    if path.name.endswith(OPTIMIZER_SUFFIX) and _is_mapping(content, "state_dict", "settings"):
        state = _state(content["state_dict"], path)
        names, name, settings = (content.get(key) for key in ("names", "optimizer", "settings"))
        if not isinstance(name, str) or not isinstance(settings, Mapping) or not _named(names):
            raise _unfit(path, "one without the names of its parameters")
        _check_step(path, content.get("step"))
        return SavedOptimizer(path, digest, state, names, name, settings)
    by_trainer = (path.parent / TRAINER_STATE).is_file()
    state = _state(_inside(content, path), path)
    groups = [group.get("param_names") for group in state["param_groups"]]
    return SavedOptimizer(
        path, digest, state, groups if _named(groups) else None, by_trainer=by_trainer
    )


def check_state_hash(path: Path, found: str, listed: str | None) -> None:
    """Refuse the state of another optimizer than that which was saved with the checkpoint.

    Args:
        path: the file of the state.
        found: its SHA-256.
        listed: what the manifest of the training says, None where it does not.

    Raises:
        EvalkitError: they differ.
    """
    if listed is not None and path.name.endswith(OPTIMIZER_SUFFIX) and found != listed:
        raise EvalkitError(
            f"expected the state with SHA-256 {listed:.8} in '{path}', which the training saved "
            f"with that checkpoint, found one with {found:.8}; copy the "
            "whole folder again"
        )


def _check_step(path: Path, step: Any) -> None:
    """Refuse the state of another step than that in the name of the file."""
    told = re.fullmatch(r"step-(\d+)", path.name.removesuffix(OPTIMIZER_SUFFIX))
    if told and isinstance(step, int) and step != int(told[1]):
        raise EvalkitError(
            f"expected the state after step {int(told[1])} in '{path}', found that after step "
            f"{step}; {_ADVICE}"
        )


def _find(checkpoint: Checkpoint) -> Path:
    path = checkpoint.path
    beside = path.parent / f"{checkpoint.name}{OPTIMIZER_SUFFIX}"
    inside = [path / name for name in _IN_FOLDER] if path.is_dir() else []
    own = [path] if path.is_file() and path.name.endswith(PICKLE_SUFFIXES) else []
    for candidate in (beside, *inside, *own):
        if candidate.exists():
            return candidate
    raise EvalkitError(
        f"expected the state of the optimizer with checkpoint '{checkpoint.name}', "
        f"'{(inside or [beside])[0]}', found no such file; {_ADVICE}"
    )


def _inside(content: Any, path: Path) -> Any:
    """Return the state of the one optimizer in what a file holds."""
    if _is_mapping(content, "state", "param_groups"):
        return content
    found = [content[k] for k in _KEYS if isinstance(content, Mapping) and content.get(k)]
    several = found[0] if found else None
    if isinstance(several, list | tuple):
        if len(several) != 1:
            raise _unfit(path, f"{len(several)} optimizers")
        return several[0]
    if several is None:
        raise _unfit(path, "none under " + ", ".join(f"'{key}'" for key in _KEYS))
    return several


def _state(value: Any, path: Path) -> Mapping[str, Any]:
    groups = value.get("param_groups") if isinstance(value, Mapping) else None
    if (
        not isinstance(groups, list)
        or not groups
        or not isinstance(value.get("state"), Mapping)
        or not all(isinstance(g, Mapping) and _numbers(g.get("params")) for g in groups)
    ):
        raise _unfit(path, "no state_dict() of one")
    for rate in (group["lr"] for group in groups if group.get("lr") is not None):
        if not _is_rate(rate):
            raise EvalkitError(
                f"expected learning rates of at least 0 in '{path}', found {rate!r}; copy or save "
                "the file again, or leave method 'optimizer' out"
            )
    return dict(value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) for item in value)


def _is_rate(value: Any) -> bool:
    single = isinstance(value, Tensor) and value.numel() == 1
    number = float(value) if single else value
    return isinstance(number, int | float) and 0 <= number < math.inf


def _is_mapping(value: Any, *keys: str) -> bool:
    return isinstance(value, Mapping) and all(key in value for key in keys)


def _named(groups: Any) -> bool:
    return isinstance(groups, list) and all(
        isinstance(group, list) and all(isinstance(name, str) for name in group) for group in groups
    )


def _unfit(path: Path, found: str) -> EvalkitError:
    return EvalkitError(
        f"expected the state of one optimizer in '{path}', found {found}; save "
        "optimizer.state_dict() under 'optimizer', or leave method 'optimizer' out"
    )
