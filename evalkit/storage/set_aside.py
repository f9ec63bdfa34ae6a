"""A RUN that is started over: the earlier one is kept under another name."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from evalkit.storage.files import unwritable
from evalkit.storage.run_json import PROVENANCE_FILE
from evalkit.storage.writers import OPENING_LOCK, nobody_writes, occupied, opening


def set_aside(run: Path) -> Path | None:
    """Give a RUN the next free name beside it, ``RUN.1``, ``RUN.2``, ..., and return where it is.

    Args:
        run: the folder of the run.

    Returns:
        Where it lies now, with all that it holds; None where there is no run.

    Raises:
        EvalkitError: another process writes to it, or it cannot be moved.
    """
    if not (run / PROVENANCE_FILE).exists():
        return None
    whole = Path(os.path.abspath(run))
    with opening(run):
        with nobody_writes(run) as free:
            if not free:
                raise occupied(run, alone=True)
        for number in itertools.count(1):
            kept = whole.with_name(f"{whole.name}.{number}")
            if os.path.lexists(kept):
                continue
            try:
                whole.rename(kept)
            except OSError as error:
                if os.path.lexists(kept):  # made by another start meanwhile
                    continue
                raise unwritable(kept, error) from error
            (kept / OPENING_LOCK).unlink(missing_ok=True)
            return kept
    return None
