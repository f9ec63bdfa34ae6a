"""What is misspelt, found before torch is loaded, which takes seconds.

Names are read off the text of the package, so that they stand in one place; what only the code of
the user can tell is left to the checks that follow.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import evalkit
from evalkit.errors import EvalkitError
from evalkit.names import base_name
from evalkit.registry import suggest, unknown

_PACKAGE = Path(evalkit.__file__).parent
_ROOMS = {"method": "updates", "optimizer": "training", "schedule": "training"}


def registered(kind: str) -> dict[str, str]:
    """Return the names that evalkit registers with a decorator, and what each is.

    Args:
        kind: ``"method"``, ``"optimizer"`` or ``"schedule"``, the name of the decorator.

    Returns:
        The first line of the docstring by name.
    """
    found = {}
    for file in sorted((_PACKAGE / _ROOMS[kind]).glob("*.py")):
        for node in ast.parse(file.read_bytes()).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                match mark:
                    case ast.Call(ast.Name(name), [ast.Constant(str(text))]) if name == kind:
                        found[text] = (ast.get_docstring(node) or "").split("\n")[0]
    return found


def check_names(kind: str, names: Iterable[str], code: Sequence[str | None] = ()) -> None:
    """Refuse a name that is not registered and that no code of the user can register.

    Args:
        kind: ``"method"``, ``"optimizer"`` or ``"schedule"``.
        names: with settings behind them or not.
        code: what is loaded before names are looked up: files, modules, tasks.

    Raises:
        EvalkitError: there is no such name; near ones are suggested.
    """
    if any(location and (":" in location or "." in location) for location in code):
        return
    known, before = registered(kind), ""
    if kind == "optimizer":  # the direction of a method can be the step
        known |= registered("method")
    for name in names:
        base = base_name(name)
        if base not in known:
            near = suggest(base, known)
            if "=" in before and ":" not in name and near.startswith("known"):
                setting = before.rpartition("=")[0]
                near = (
                    f"a comma after '{before}' starts the next {kind}; write each value of a "
                    f"setting as {before},{setting}={base}"
                )
                raise unknown(kind, base, near)
            raise unknown(kind, base, near, extended=True)
        before = name


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
