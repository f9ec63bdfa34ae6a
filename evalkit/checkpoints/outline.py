"""What a file of ``torch.save`` declares, compared with the file before torch reads it.

So the size of every storage and tensor is known, and that of all that is unpacked, before anything
is allocated; see :mod:`evalkit.checkpoints.instructions`.
"""

from __future__ import annotations

import mmap
import zipfile
from pathlib import Path

from evalkit.checkpoints.instructions import Outline, follow
from evalkit.errors import EvalkitError

MOST_UNFOLDED = 16
"""What a file may unfold to, compressed or by tensors that repeat numbers, in its own size..."""
ALWAYS_UNFOLDED = 16 * 2**20
"""...and in bytes, where that is more."""
_MOST_PICKLED = 2
_ALWAYS_PICKLED = 2**20
"""What the instructions may unpack to, in the size of the file and in bytes: they are not numbers,
so that compression gains little on those of real files."""
_LEGACY_PICKLES = 5  # a magic number, the version, the system, the content, the storages' keys


def outline_of(path: Path) -> Outline:
    """Return what a file as ``torch.save`` writes it declares, its sizes checked against the file.

    Raises:
        ValueError: it is no such file, or damaged.
        EvalkitError: it declares more than it can hold.
        OSError: it cannot be read.
    """
    outline = _zip_outline(path) if _is_zip(path) else _legacy_outline(path)
    most = max(ALWAYS_UNFOLDED, MOST_UNFOLDED * path.stat().st_size)
    if outline.complaint is None and outline.unfolded > most:
        outline.complaint = (
            f"tensors of {_mebibytes(outline.unfolded)} in a file of "
            f"{_mebibytes(path.stat().st_size)}"
        )
    if outline.complaint is not None:
        raise _oversized(path, outline.complaint)
    return outline


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _zip_outline(path: Path) -> Outline:
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > max(ALWAYS_UNFOLDED, MOST_UNFOLDED * size):
                raise _oversized(path, f"{_mebibytes(unpacked)} compressed to {_mebibytes(size)}")
            sizes = {entry.filename.lower(): entry.file_size for entry in entries}
            if len(sizes) < len(entries):
                raise ValueError("two entries of one name")
            if archive.comment or min((e.header_offset for e in entries), default=0):
                # Which archive of a file that holds two is read would depend on the reader.
                raise ValueError("an archive inside of something else")
            home = entries[0].filename.split("/")[0] if entries else ""
            if f"{home}/constants.pkl".lower() in sizes:
                return Outline()  # a TorchScript program, which torch refuses to read
            pickled = archive.getinfo(f"{home}/data.pkl")
            if pickled.file_size > max(_ALWAYS_PICKLED, _MOST_PICKLED * size):
                raise _oversized(path, f"instructions of {_mebibytes(pickled.file_size)}")
            content = archive.read(pickled)
    except (EvalkitError, OSError):
        raise
    except Exception as error:  # damaged archives fail in many ways; all mean the same
        raise ValueError(f"a damaged archive: {error}") from error
    outline, _, _ = follow(content, 0)
    for key, declared in outline.storages.items():
        there = sizes.get(f"{home}/data/{key}".lower())
        if there != declared:
            raise ValueError(f"storage {key} of {declared} bytes, {there} there")
    return outline


def _legacy_outline(path: Path) -> Outline:
    """Return the outline of a file as torch wrote it before version 1.6, or of a plain pickle."""
    size = path.stat().st_size
    if not size:
        raise ValueError("an empty file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        first, _, end = follow(content, 0)
        if first.names:
            return first  # a plain pickle, and no file of torch's
        for _ in range(_LEGACY_PICKLES - 3):
            _, _, end = follow(content, end)
        outline, _, end = follow(content, end)
        _, keys, _ = follow(content, end)
    declared = sum(outline.storages.values())
    if declared > size:
        outline.complaint = f"storages of {_mebibytes(declared)} in a file of {_mebibytes(size)}"
    elif not isinstance(keys, list) or {*map(_key, keys)} != outline.storages.keys():
        raise ValueError("storages without numbers")
    return outline


def _key(value: object) -> str | None:
    return str(value) if isinstance(value, str | int) else None


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.3g} MiB" if size < 2**60 else f"2^{size.bit_length() - 1} bytes"


def _oversized(path: Path, found: str) -> EvalkitError:
    return EvalkitError(
        f"expected a file about as large as its tensors at '{path}', found {found}; save "
        "{name: tensor.clone() for name, tensor in model.state_dict().items()} without compression"
    )
