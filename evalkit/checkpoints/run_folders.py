"""The checkpoints of a folder without a manifest: which they are, and how far training was.

Besides plain files these are the folders that a training library leaves: ``checkpoint-500/`` of the
Hugging Face Trainer, any folders with a step in their name, or one folder that is itself a saved
model or adapter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evalkit.checkpoints.file_names import (
    check_name,
    checkpoint_name,
    ending,
    is_training_state,
    special_kind,
)
from evalkit.checkpoints.order import (
    Order,
    equally_spaced,
    has_number,
    is_aside,
    is_of_second_run,
    named_step,
    order_by_names,
    told,
)
from evalkit.checkpoints.saved import MODEL_FILES, find_saved, holds_saved, named_adapters
from evalkit.checkpoints.sharded import check_not_sharded, is_sharded
from evalkit.checkpoints.trainer_state import TRAINER_STATE, TrainerState, read_trainer_state
from evalkit.errors import EvalkitError
from evalkit.registry import suggest

_TRAINER_FOLDER = re.compile(r"checkpoint-\d+")
# What lies beside a saved model: a model's own files.
_BESIDE = re.compile(r"(model|pytorch_model|adapter_model)(-\d+-of-\d+)?\.(safetensors|bin)")
BY_NAME, BY_TIME = "name", "time"


@dataclass(frozen=True)
class Found:
    """A checkpoint as its place on disk tells.

    The fields are those of :class:`evalkit.checkpoints.Checkpoint`.
    """

    name: str
    path: Path
    step: int
    progress: float
    epoch: int | None = None


@dataclass(frozen=True)
class Findings:
    """The checkpoints of a folder by rising step, and what was decided about them.

    Args:
        checkpoints: none where there are none.
        notes: sentences for the user: the order, and what was set aside.
    """

    checkpoints: tuple[Found, ...]
    notes: tuple[str, ...] = field(default=())


def find_checkpoints(folder: Path, order: str | Sequence[str] | None = None) -> Findings:
    """Return the checkpoints in ``folder`` by rising step, none where there are none.

    Hidden files and folders do not count. Where folders ``checkpoint-N`` lie, files beside them do
    not count either: those belong to the end of the same run. The state of an optimizer never is a
    checkpoint, and names such as ``last`` and ``best`` do not count beside numbered ones.

    Args:
        folder: the folder, or one file.
        order: ``"name"`` (numbers by their value), ``"time"`` (of the last change) or the names in
            order; None goes by the steps.

    Raises:
        EvalkitError: files and folders are mixed, their order cannot be told, two share a step or a
            name, a file is none that can be read, or a ``trainer_state.json`` is damaged.
    """
    try:
        return _single_file(folder) if not folder.is_dir() else _find(folder, order)
    except OSError as error:
        raise EvalkitError(
            f"expected a folder that can be read at '{folder}', found {error.strerror or error}; "
            "check its permissions"
        ) from error


def _single_file(path: Path) -> Findings:
    check_name(path)
    name = checkpoint_name(path)
    step = named_step(name)
    return Findings((Found(name, path, step or 0, 0.0 if step == 0 else 1.0),))


def _find(folder: Path, order: str | Sequence[str] | None) -> Findings:
    files, folders, states = _children(folder)
    saved = [path for path in folders if _TRAINER_FOLDER.fullmatch(path.name)]
    if not saved:
        saved = [
            path
            for path in folders
            if holds_saved(path) or named_adapters(path) or is_sharded(path)
        ]
        numbered = [path for path in saved if has_number(path.name)]
        loose = [path for path in files if not _is_beside(folder, path)]
        if holds_saved(folder) and not loose and not numbered:
            return Findings((_single(folder),))
        if not loose and not numbered and (lone := _lone_adapter(folder)) is not None:
            return Findings((_single(lone),))
        if not holds_saved(folder) and is_sharded(folder, inside=not files):
            check_not_sharded(folder)
        if loose and numbered:
            raise EvalkitError(
                f"expected checkpoints in '{folder}' that are all files or all folders, found "
                f"'{loose[0].name}' and '{numbered[0].name}'; move one of the kinds elsewhere"
            )
        # Folders without a step are asides, such as 'best', when files are the checkpoints.
        saved = [] if loose else saved
    if saved:
        for path in saved:
            check_name(path)
            if not holds_saved(path) and not named_adapters(path):
                check_not_sharded(path)
        return _ordered(folder, saved, [read_trainer_state(path) for path in saved], order, [])
    for path in files:
        check_name(path)
    return _ordered(folder, files, [None] * len(files), order, states)


def _lone_adapter(folder: Path) -> Path | None:
    """Return the checkpoint that a folder with adapters of names of their own is, None for several.

    The Trainer's state lies beside the folders of the adapters.
    """
    named = named_adapters(folder)
    if named and (folder / TRAINER_STATE).is_file():
        return folder
    return named[0] if len(named) == 1 else None


def _children(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the files with weights, the folders, and the files with training state, by name."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    known = [path for path in paths if ending(path.name) and not path.is_dir()]
    states = [path for path in known if is_training_state(path.name)]
    files = [path for path in known if path not in states]
    for path in files:
        kind = special_kind(path)
        if kind is not None:
            raise EvalkitError(
                f"expected a file of weights at '{path}', found {kind}; remove it, or put the file "
                "there"
            )
    return files, [path for path in paths if path.is_dir()], states


def _is_beside(folder: Path, path: Path) -> bool:
    """Return whether a file is part of the model that the folder itself is."""
    return bool(_BESIDE.fullmatch(path.name)) or (
        path.name in MODEL_FILES and path in find_saved(folder).weights
    )


def _single(folder: Path) -> Found:
    """Return a folder that is one checkpoint: the end of training, unless its state differs."""
    name = folder.resolve().name or "checkpoint"
    check_name(folder)
    state = read_trainer_state(folder)
    if state is None:
        step = named_step(name) if re.search("step|checkpoint|epoch|iter", name.lower()) else None
        return Found(name, folder, step or 0, 1.0)
    progress = state.step / state.total if state.total else 1.0
    return Found(name, folder, state.step, progress, state.epoch)


def _ordered(
    folder: Path,
    paths: list[Path],
    states: list[TrainerState | None],
    order: str | Sequence[str] | None,
    set_aside: list[Path],
) -> Findings:
    """Return checkpoints by rising step, with the progress that the last one's state tells."""
    if not paths:
        return Findings(())
    rows = [_Row(checkpoint_name(path), path, s) for path, s in zip(paths, states, strict=True)]
    _check_different(folder, rows)
    kept = _kept(folder, rows, order)
    notes = []
    if set_aside:
        notes.append(f"set aside, as state of training: {_listed(set_aside)}")
    if left := [row.path for row in rows if row not in kept]:
        advice = (
            "name its step, as in 'step-100', to score it" if order is None else "not in `order`"
        )
        notes.append(f"set aside: {_listed(left)} ({advice})")
    found = _steps(folder, kept, order)
    ordered = sorted(zip(found.steps, kept, strict=True), key=lambda item: item[0])
    if len(ordered) > 1:
        notes.append(told([row.name for _, row in ordered], found.told))
    last, state = ordered[-1][0], ordered[-1][1].state
    total = state.total if state is not None and state.total is not None and not order else last
    lone = 1.0 if len(ordered) == 1 and named_step(ordered[0][1].name) is None else 0.0
    checkpoints = tuple(
        Found(
            row.name,
            row.path,
            step,
            step / total if total else lone,
            row.state.epoch if row.state else None,
        )
        for step, row in ordered
    )
    return Findings(checkpoints, tuple(notes))


@dataclass(frozen=True)
class _Row:
    name: str
    path: Path
    state: TrainerState | None


def _kept(folder: Path, rows: list[_Row], order: str | Sequence[str] | None) -> list[_Row]:
    """Return the rows that count: all named by ``order``, otherwise all but the asides."""
    if order is None:
        plain = [row for row in rows if not is_aside(row.name)]
        if not any(row.state is not None or has_number(row.name) for row in plain):
            return rows
        for row in rows:
            if row not in plain and is_of_second_run(row.name):
                raise EvalkitError(
                    f"expected the checkpoints of one run in '{folder}', found '{row.name}', which "
                    "a second run writes; move the checkpoints of the other run elsewhere, or pass "
                    "`order` with the names in order"
                )
        return plain
    wanted = [order] if isinstance(order, str) else list(order)
    if wanted in ([BY_NAME], [BY_TIME]):
        return rows
    kept: list[_Row] = []
    by_name = {row.path.name: row for row in rows} | {row.name: row for row in rows}
    for name in wanted:
        if name not in by_name:
            known = [row.name for row in rows]
            raise EvalkitError(
                f"expected '{BY_NAME}', '{BY_TIME}' or names of checkpoints in '{folder}' as "
                f"`order`, found '{name}'; {suggest(name, [*known, BY_NAME, BY_TIME])}"
            )
        if by_name[name] in kept:
            raise EvalkitError(
                f"expected every name once as `order`, found '{name}' twice; remove one"
            )
        kept.append(by_name[name])
    if not kept:
        raise EvalkitError(
            f"expected '{BY_NAME}', '{BY_TIME}' or names of checkpoints in '{folder}' as `order`, "
            "found nothing; name at least one"
        )
    return kept


def _steps(folder: Path, rows: list[_Row], order: str | Sequence[str] | None) -> Order:
    """Return the step of every checkpoint.

    It is what ``order`` asks for, otherwise what the Trainer wrote, otherwise the number in the
    name.
    """
    wanted = [order] if isinstance(order, str) else order
    if wanted in ([BY_NAME], (BY_NAME,)):
        ranked = sorted(rows, key=lambda row: (_natural(row.name), row.name))
        return _positions(rows, ranked, "by name, equally spaced")
    if wanted in ([BY_TIME], (BY_TIME,)):
        times = {row: find_saved(row.path).weights[0].stat().st_mtime_ns for row in rows}
        if len(set(times.values())) < len(rows):
            raise EvalkitError(
                f"expected checkpoints in '{folder}' that were changed at different times, found "
                "two of one time; pass `order` with their names in order"
            )
        return _positions(rows, sorted(rows, key=times.__getitem__), "by time, equally spaced")
    if wanted is not None:
        return equally_spaced(len(rows), "as `order` names them, equally spaced")
    if len(rows) == 1 and rows[0].state is None:
        return Order((named_step(rows[0].name) or 0,), "the only one")
    known = [row.state.step if row.state else None for row in rows]
    if all(step is None for step in known):
        return order_by_names([row.name for row in rows], folder)
    steps = [
        named_step(r.name) if step is None else step for r, step in zip(rows, known, strict=True)
    ]
    seen: dict[int, _Row] = {}
    for row, step in zip(rows, steps, strict=True):
        if step is None:
            raise EvalkitError(
                f"expected '{TRAINER_STATE}' in every checkpoint of '{folder}' or a step in its "
                f"name, found neither for '{row.name}'; copy the folder again, or remove it"
            )
        if step in seen:
            raise _repeated(folder, seen[step].path.name, row.path.name)
        seen[step] = row
    return Order(tuple(step or 0 for step in steps), f"by '{TRAINER_STATE}'")


def _positions(rows: list[_Row], ranked: list[_Row], told: str) -> Order:
    return Order(tuple(ranked.index(row) for row in rows), told, spaced=True)


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts names with their numbers by value."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts)


def _check_different(folder: Path, rows: list[_Row]) -> None:
    seen: dict[str, _Row] = {}
    for row in rows:
        if row.name in seen:
            raise _repeated(folder, seen[row.name].path.name, row.path.name)
        seen[row.name] = row


def _repeated(folder: Path, one: str, other: str) -> EvalkitError:
    return EvalkitError(
        f"expected one checkpoint for each step and name in '{folder}', found '{one}' and "
        f"'{other}'; remove or rename one"
    )


def _listed(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
