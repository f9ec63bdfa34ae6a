"""What is misspelt, found before torch is loaded, which takes seconds.

Names are read off the text of the package, so that they stand in one place; what only the code of
the user can tell is left to the checks that follow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import evalkit
from evalkit.errors import EvalkitError
from evalkit.registry import suggest

_PACKAGE = Path(evalkit.__file__).parent


def registered_names(kind: str) -> tuple[str, ...]:
    """Return the names that evalkit registers with a decorator.

    Args:
        kind: ``"method"`` or ``"optimizer"``, the name of the decorator.
    """
    room = {"method": "updates", "optimizer": "training"}[kind]
    pattern = re.compile(rf'^@{kind}\("([^"]+)"\)', re.MULTILINE)
    return tuple(
        name
        for file in sorted((_PACKAGE / room).glob("*.py"))
        for name in pattern.findall(file.read_text("utf-8"))
    )


def check_names(kind: str, names: Iterable[str], code: Sequence[str | None] = ()) -> None:
    """Refuse a name that is not registered and that no code of the user can register.

    Args:
        kind: ``"method"`` or ``"optimizer"``.
        names: with settings behind them or not.
        code: what is loaded before names are looked up: files, modules, tasks.

    Raises:
        EvalkitError: there is no such name; near ones are suggested.
    """
    if any(location and (":" in location or "." in location) for location in code):
        return
    known = registered_names(kind)
    for name in names:
        base = name.split(":")[0]
        if base not in known:
            raise EvalkitError(f"unknown {kind} '{base}'; {suggest(base, known)}")


def check_there(folder: Path) -> None:
    """Refuse a path of checkpoints at which there is nothing.

    Raises:
        EvalkitError: there is nothing.
    """
    if not os.path.lexists(folder):
        raise EvalkitError(
            f"expected a folder of checkpoints at '{folder}', found nothing there; check the path, "
            "or make one with `evalkit train`"
        )
