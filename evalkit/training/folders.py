"""The folder of a training: new, unfinished or finished, and never one for another.

``unfinished.json`` is there before the first checkpoint and lists those that are whole; the last
act of a training is to rename it to the manifest. So a folder without a manifest but with that file
is of a training that was interrupted, or is still at work.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evalkit.checkpoints.manifest import (
    MANIFEST_NAME,
    UNFINISHED_NAME,
    Entry,
    read_manifest,
    write_manifest,
)
from evalkit.errors import EvalkitError
from evalkit.storage.files import PART, unwritable
from evalkit.storage.json_files import read_object


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder in which a training can neither start nor go on.

    Args:
        folder: of the training.
        resume: whether it may go on.

    Raises:
        EvalkitError: it is not empty, and no training in it may be gone on with.
    """
    # What a training that was killed left of its first file does not count.
    if not folder.exists() or (folder.is_dir() and all(map(is_part, folder.iterdir()))):
        return
    finished = folder.is_dir() and (folder / MANIFEST_NAME).is_file()
    unfinished = folder.is_dir() and (folder / UNFINISHED_NAME).is_file()
    if resume and (finished or unfinished):
        return
    expected, advice = "a new or empty folder", "choose another `folder`"
    if not folder.is_dir():
        found = "a file"
    elif unfinished and not finished:
        found = "a training that was interrupted"
        advice = f"pass `resume` to go on with it, or {advice}"
    else:
        found = "a folder that is not empty"
        expected = "the folder of a training" if resume else expected
    raise EvalkitError(f"expected {expected} at '{folder}', found {found}; {advice}")


def training_in(folder: Path) -> tuple[dict[str, Any], tuple[Entry, ...]] | None:
    """Return what an unfinished or finished training says of itself, and its whole checkpoints.

    Returns:
        The manifest and its entries, none where the first one is not whole; None where no training
        began.

    Raises:
        EvalkitError: what it says cannot be read.
    """
    for name in (MANIFEST_NAME, UNFINISHED_NAME):
        path = folder / name
        if path.is_file():
            if name == UNFINISHED_NAME and read_object(path).get("checkpoints") == []:
                return read_object(path), ()
            return read_manifest(path)
    return None


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a finished training."""
    return (folder / MANIFEST_NAME).is_file()


def write_unfinished(folder: Path, manifest: dict[str, Any]) -> None:
    """Say how far an unfinished training is."""
    write_manifest(folder / UNFINISHED_NAME, manifest)


def finish(folder: Path) -> None:
    """Make what an unfinished training says of itself its manifest.

    Raises:
        EvalkitError: the file cannot be renamed.
    """
    try:
        os.replace(folder / UNFINISHED_NAME, folder / MANIFEST_NAME)
    except OSError as error:
        raise unwritable(folder / MANIFEST_NAME, error) from error


def is_part(path: Path) -> bool:
    """Return whether a file or folder is one that was being written."""
    return path.name.startswith(".") and path.name.endswith(PART)


def remove_parts(folder: Path) -> None:
    """Remove what was being written in a folder when a training was killed."""
    for path in filter(is_part, folder.iterdir()):
        _remove_all(path)


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder; on an error before its training has a whole checkpoint, take all of it back.

    Args:
        folder: absent or empty.

    Raises:
        EvalkitError: it cannot be made.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove(missing)
        raise EvalkitError(
            f"expected a folder that can be made at '{folder}', found {error.strerror or error}; "
            "choose another `folder`"
        ) from error
    try:
        yield
    except BaseException:
        path = folder / UNFINISHED_NAME
        if not path.is_file() or not read_object(path).get("checkpoints"):
            for inner in folder.iterdir():
                _remove_all(inner)
            _remove(missing)
        raise


def _remove_all(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _remove(folders: list[Path]) -> None:
    for one in folders:
        with contextlib.suppress(OSError):
            one.rmdir()
