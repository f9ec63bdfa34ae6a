"""The folder that an export is written to: new, empty, or with an earlier export in it.

A file of evalkit's own names what was written, and its hashes, so that nothing of anybody else is
ever removed: not a run that a user logged into the same store, not a file that a tool added.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evalkit.errors import EvalkitError
from evalkit.storage.files import check_writable, make_folder, write_atomically
from evalkit.storage.json_files import printable, read_object

MARKER = "evalkit-export.json"
_ADVICE = "name another folder as `out`"
_LINK = "link"


@contextmanager
def export_folder(place: str | os.PathLike[str], tool: str, run: Path) -> Iterator[Path]:
    """Give a folder to write an export into; an earlier export of the same kind is removed first.

    An error leaves nothing of the export behind.

    Args:
        place: made when missing.
        tool: what the export is for.
        run: the folder of the run.

    Raises:
        EvalkitError: it holds anything but what such an export wrote, or cannot be written.
    """
    folder = Path(os.path.abspath(place))
    _check_free(folder, tool)
    check_writable(folder)
    _clear(make_folder(folder))
    about = {"export": tool, "run": printable(run.resolve())}
    write_atomically(folder / MARKER, _text({**about, "files": None}))
    try:
        yield folder
    except BaseException:
        _clear(folder)
        raise
    write_atomically(folder / MARKER, _text({**about, "files": _files(folder)}))


def _check_free(folder: Path, tool: str) -> None:
    """Refuse a folder that holds what no export wrote, or what has been changed since.

    Raises:
        EvalkitError: it does.
    """
    if folder.exists() and not folder.is_dir():
        raise EvalkitError(f"expected a folder for the export, found a file '{folder}'; {_ADVICE}")
    present = sorted(os.listdir(folder)) if folder.exists() else []
    if not present:
        return
    if MARKER not in present:
        raise EvalkitError(
            f"expected an empty folder or an earlier export at '{folder}', found "
            f"'{printable(present[0])}' in it; {_ADVICE}"
        )
    marker = read_object(folder / MARKER, _ADVICE)
    if marker.get("export") != tool:
        raise EvalkitError(
            f"expected an export to {tool} at '{folder}', found one to {marker.get('export')}; "
            f"{_ADVICE}"
        )
    written = marker.get("files")
    if not isinstance(written, Mapping):
        return  # of a start that was killed
    for name, digest in _files(folder).items():
        if written.get(name) != digest:
            what = "was changed" if name in written else "is not part of it"
            raise EvalkitError(
                f"expected nothing but an export in '{folder}', found that '{printable(name)}' "
                f"{what}; {_ADVICE}"
            )


def _files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder but the marker, by its path there."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in (*names, *folders):
            path = Path(place, name)
            key = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found[printable(key)] = _LINK
            elif name in names and key != MARKER:
                found[printable(key)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(sorted(found.items()))


def _clear(folder: Path) -> None:
    """Remove everything in a folder; the marker last, so that a kill leaves it."""
    for place, folders, names in os.walk(folder, topdown=False):
        for name in names:
            if Path(place, name) != folder / MARKER:
                os.unlink(os.path.join(place, name))
        for name in folders:
            path = Path(place, name)
            path.unlink() if path.is_symlink() else path.rmdir()
    with contextlib.suppress(FileNotFoundError):
        (folder / MARKER).unlink()


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
