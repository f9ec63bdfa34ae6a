"""The manifest of a trajectory, ``trajectory.json``: its format, checked field by field."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from evalkit.checkpoints.file_names import SUFFIXES, ending, is_writable_name
from evalkit.errors import EvalkitError, shortened
from evalkit.registry import suggest
from evalkit.storage.files import write_atomically
from evalkit.storage.json_files import read_object
from evalkit.storage.training_folder import MANIFEST_FILE, UNFINISHED_FILE

MANIFEST_NAME = MANIFEST_FILE
UNFINISHED_NAME = UNFINISHED_FILE
"""What the manifest of a training is called until the training is finished."""
OPTIMIZER_SUFFIX = ".optimizer.pt"
"""The end of the file beside a checkpoint from which the optimizer, and its training, go on."""
FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """What a manifest says about one checkpoint; fields without a default are required.

    The fields are those of :class:`evalkit.checkpoints.Checkpoint`, with the ``file``, which can be
    the folder of a saved model or adapter, and the file of its ``optimizer``, both relative to the
    folder of the manifest.
    """

    file: str
    step: int
    progress: float
    epoch: int | None = None
    sha256: str | None = None
    training_loss: float | None = None
    validation_accuracy: float | None = None
    optimizer: str | None = None
    optimizer_sha256: str | None = None


def _is_file(value: Any) -> bool:
    # Read as a Windows path, both separators count and drive letters show.
    if not isinstance(value, str):
        return False
    path = PureWindowsPath(value)
    known = path.name != "" and (ending(path.name) != "" or path.suffix == "")
    return known and is_writable_name(value) and not path.anchor and ".." not in path.parts


def _is_state(value: Any) -> bool:
    return _is_file(value) and ending(value) != ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _are_settings(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(item, str | bool) or _is_number(item) for item in value.values()
    )


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "file": (
        _is_file,
        f"a file inside the folder that ends in {', '.join(SUFFIXES)}, or a folder inside it",
    ),
    "step": (_is_count, "an integer from 0 to 2^63 - 1"),
    "progress": (_is_share, "a number from 0 to 1"),
    "epoch": (_is_count, "an integer from 0 to 2^63 - 1"),
    "sha256": (_is_hash, "64 hexadecimal digits"),
    "training_loss": (_is_number, "a finite number"),
    "validation_accuracy": (_is_share, "a number from 0 to 1"),
    "optimizer": (_is_state, f"a file inside the folder that ends in {', '.join(SUFFIXES)}"),
    "optimizer_sha256": (_is_hash, "64 hexadecimal digits"),
}


def read_manifest(path: Path) -> tuple[dict[str, Any], tuple[Entry, ...]]:
    """Return the content of a manifest, and its checkpoints by rising step.

    Raises:
        EvalkitError: not JSON, another format version, or a field that is not what it should be.
    """
    manifest = read_object(path, "copy the file again, or remove it to go by file names")
    if manifest.get("format") != FORMAT:
        raise EvalkitError(
            f"expected 'format': {FORMAT} in '{path}', found {manifest.get('format')!r}; use the "
            "version of evalkit that wrote it, or remove the file to go by file names"
        )
    if not isinstance(manifest.get("task"), str | None):
        raise _wrong(path, "task", "the name of a task", manifest["task"])
    if not _are_settings(manifest.get("settings", {})):
        raise _wrong(
            path,
            "settings",
            "an object of names and texts, finite numbers or booleans",
            manifest["settings"],
        )
    listed = manifest.get("checkpoints")
    if not isinstance(listed, list) or not listed:
        raise _wrong(path, "checkpoints", "a list of at least one checkpoint", listed)
    entries = [_entry(path, index, item) for index, item in enumerate(listed)]
    entries.sort(key=lambda entry: entry.step)
    _check_order(path, entries)
    return manifest, tuple(entries)


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write the content of a manifest; NaN and infinity are refused, as JSON has neither."""
    write_atomically(path, json.dumps(manifest, indent=2, allow_nan=False) + "\n")


def _entry(path: Path, index: int, item: Any) -> Entry:
    where = f"checkpoints[{index}]"
    if not isinstance(item, dict):
        raise _wrong(path, where, "an object", item)
    for name in item:
        if name not in _FIELDS:
            raise EvalkitError(
                f"expected known fields in {where} of '{path}', found '{name}'; "
                f"{suggest(name, _FIELDS)}"
            )
    for field in dataclasses.fields(Entry):
        is_valid, expected = _FIELDS[field.name]
        value = item.get(field.name)
        required = field.default is dataclasses.MISSING
        if not is_valid(value) and (required or value is not None):
            raise _wrong(path, f"{where}.{field.name}", expected, value)
    return Entry(**item)


def _wrong(path: Path, field: str, expected: str, found: Any) -> EvalkitError:
    return EvalkitError(
        f"expected {expected} as {field} of '{path}', found {shortened(repr(found))}; correct the "
        f"manifest, or "
        "remove it to go by file names"
    )


def _check_order(path: Path, entries: list[Entry]) -> None:
    """Refuse a step, a file or a progress that two checkpoints share, or progress that falls."""
    for entry, later in itertools.pairwise(entries):
        if entry.step == later.step:
            raise EvalkitError(
                f"expected one checkpoint for each step in '{path}', found '{entry.file}' and "
                f"'{later.file}' for step {entry.step}; correct the manifest"
            )
        if entry.progress >= later.progress:
            raise EvalkitError(
                f"expected progress to rise with the step in '{path}', found {later.progress} for "
                f"'{later.file}' after {entry.progress}; correct the manifest"
            )
    files = [PureWindowsPath(entry.file).name for entry in entries]
    names = [file.removesuffix(ending(file)) for file in files]
    for name in names:
        if names.count(name) > 1:
            raise EvalkitError(
                f"expected a name of its own for every checkpoint in '{path}', found '{name}' "
                "twice; rename the files"
            )
