"""The names of checkpoint files: known endings, names that tables can hold, and special files."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from evalkit.errors import EvalkitError

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar")
SUFFIXES = (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES)

_LONGEST_NAME, _LONGEST_PATH = 255, 3072  # bytes, as file systems have it, with room for a home

# What training goes on from, beside the weights.
_TRAINING_STATE = re.compile(
    r"(?:^|[^a-z])(?:optimi[sz]ers?|optim|(?:lr_?)?schedulers?|(?:grad_?)?scaler|rng_states?"
    r"|random_states?|training_args|trainer_state|train_state|training_state|optimizer_states?"
    r"|optim_states?)(?![a-z])"
)
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def ending(name: str) -> str:
    """Return the known ending of a file name, the longest that fits, empty for none."""
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default="")


def checkpoint_name(path: Path) -> str:
    """Return what a checkpoint is called: the folder's name, or the file's without its ending."""
    if path.is_dir():
        return path.name
    known = ending(path.name)
    return path.name[: -len(known)] if known and path.name != known else path.stem


def is_training_state(name: str) -> bool:
    """Return whether a file holds the state of an optimizer or the like, by its name."""
    return _TRAINING_STATE.search(name.lower()) is not None


def special_kind(path: Path) -> str | None:
    """Return what is at a path that can never be read as a file, None for a file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if os.path.islink(path):
            missing = isinstance(error, FileNotFoundError)
            return "a link to a file that is missing" if missing else "a link without end"
        return "nothing there"
    return next((said for is_kind, said in _KINDS if is_kind(mode)), None)


def printable(path: Path | str) -> str:
    """Return a path as text that any terminal and file can hold."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def is_writable_name(name: str) -> bool:
    """Return whether a file can have a name, and tables hold it: UTF-8, no control characters."""
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    fits = len(encoded) <= _LONGEST_PATH and max(map(len, encoded.split(b"/"))) <= _LONGEST_NAME
    return fits and name.isprintable()


def check_name(path: Path) -> None:
    """Refuse a checkpoint whose path cannot be written to the tables of a run.

    Raises:
        EvalkitError: the path is not UTF-8, or the name holds control characters.
    """
    if not is_writable_name(path.name) or not is_writable_name(str(path)):
        raise EvalkitError(
            f"expected a name in UTF-8 without control characters, found '{printable(path)}'; "
            "rename the file"
        )
