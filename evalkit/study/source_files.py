"""The user's own code behind a run: the files of its functions and what they import, by hash.

Imports are read off the text of a file, not off what this process happens to have imported, so that
every start of a run finds the same files. What is installed is left out: ``run.json`` has versions.
"""

from __future__ import annotations

import ast
import hashlib
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_PACKAGE = "evalkit"


def sources(functions: Iterable[Callable[..., Any]]) -> dict[str, str]:
    """Return the SHA-256 of the user's files that functions are in and import, by file name.

    Args:
        functions: the functions of a task, of methods; those of evalkit itself are left out.

    Returns:
        By the name of the file for the files of functions, by the path of the module, such as
        ``package/module.py``, for what they import.
    """
    found: dict[str, str] = {}
    seen: set[Path] = set()
    for name, path in _homes(functions):
        _add(found, path.name, path)
        seen.add(path)
        if not _is_installed(path):
            for inner, file in _imported(path, name, seen):
                _add(found, inner, file)
    return found


def _homes(functions: Iterable[Callable[..., Any]]) -> Iterator[tuple[str, Path]]:
    """Yield name and file of the modules that functions, or objects in their place, are from."""
    for function in functions:
        while isinstance(function, partial):
            function = function.func
        module = sys.modules.get(getattr(function, "__module__", None) or "")
        path = Path(getattr(module, "__file__", None) or "")
        if module is not None and module.__name__.split(".")[0] != _PACKAGE and path.is_file():
            yield module.__name__, path.resolve()


def _add(found: dict[str, str], name: str, path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if found.get(name, digest) != digest:  # another file of the same name
        name = f"{path.parent.name}/{name}"
    found[name] = digest


def _imported(path: Path, module: str, seen: set[Path]) -> Iterator[tuple[str, Path]]:
    """Yield names and files of what a file imports, and what that imports, the user's own only."""
    waiting = [(path, module)]
    while waiting:
        path, module = waiting.pop()
        is_package = path.name == "__init__.py"
        package = module if is_package else module.rpartition(".")[0]
        for name in _names(path, package):
            for dotted in _with_parents(name):
                file = _file_of(dotted, path.parent)
                if file is None or file in seen or _is_installed(file):
                    continue
                seen.add(file)
                waiting.append((file, dotted))
                inner = dotted.replace(".", "/")
                yield inner + ("/__init__.py" if file.name == "__init__.py" else ".py"), file


def _names(path: Path, package: str) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever it does."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            start = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            # A name that is imported from a package may be a module of it.
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
            if base:
                yield base


def _with_parents(name: str) -> list[str]:
    """Return ``a``, ``a.b``, ``a.b.c``: importing the last one runs them all."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _file_of(name: str, beside: Path) -> Path | None:
    """Return the Python file of a module, without importing anything; None where there is none."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        place: list[str] | None = [*sys.path, str(beside)]
        spec = None
        for end in _with_parents(name):
            if place is None:
                return None
            try:
                spec = PathFinder.find_spec(end, place)
            except (ImportError, ValueError):
                return None
            if spec is None:
                return None
            found = spec.submodule_search_locations
            place = None if found is None else list(found)
        file = spec.origin if spec is not None else None
    if file is None or not str(file).endswith(".py"):
        return None
    path = Path(file)
    return path.resolve() if path.is_file() else None


def _is_installed(path: Path) -> bool:
    """Return whether a file came with Python, with an installed package or with evalkit."""
    return any(path.is_relative_to(folder) for folder in _installed_folders())


def _installed_folders() -> list[Path]:
    paths = sysconfig.get_paths()
    named = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    named += [*site.getsitepackages(), site.getusersitepackages()]
    return [Path(name).resolve() for name in named] + [Path(__file__).resolve().parents[1]]
