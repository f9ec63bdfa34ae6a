"""Every page: links lead somewhere, code runs, commands exist, and nothing is said twice."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import posixpath
import re
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit import likelihoods
from evalkit.training.optimizers import REGISTRY
from tests.support.documents import (
    PAGES,
    ROOT,
    anchors,
    document,
    indented,
    links,
    page,
    prose,
    python_blocks,
)

WITH_PYTHON = [path for path in PAGES if python_blocks(page(path))]
LINKED = [
    *PAGES,
    "CHANGELOG.md",
    *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "reports").rglob("*.md")),
]


@pytest.mark.parametrize("path", LINKED)
def test_links_lead_somewhere(path: str) -> None:
    wrong = []
    for link in links(page(path)):
        file, _, heading = link.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(path), file)) if file else path
        exists = (ROOT / place).exists()
        if not exists or (heading and heading not in anchors(page(place))):
            wrong.append(link)
    assert wrong == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with the bundled trajectory; what pages register ends with it."""
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for registry in (likelihoods._REGISTRY, REGISTRY):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    yield tmp_path
    for name in [path.stem for path in tmp_path.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("path", WITH_PYTHON)
def test_the_code_of_a_page_runs(path: str, folder: Path) -> None:
    """In one namespace, from top to bottom; files that a block shows are there before."""
    blocks = python_blocks(page(path))
    for block in blocks:
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks:
            exec(compile(block.given, f"{path}: given", "exec"), names)
            if not block.not_run:
                exec(compile(block.text, path, "exec"), names)


@pytest.mark.parametrize(
    ("path", "text"),
    [(path, block.text) for path in PAGES for block in python_blocks(page(path)) if block.not_run],
)
def test_code_that_cannot_run_names_what_exists(path: str, text: str) -> None:
    """Its imports are there, and its calls of them fit."""
    tree, names = ast.parse(text), dict(vars(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name: _module(alias.name) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            module = _module(str(node.module))
            names |= {
                a.name: None if module is None else getattr(module, a.name) for a in node.names
            }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = _value(call.func, names)
        if function is None or not any(keyword.arg for keyword in call.keywords):
            continue
        parameters = inspect.signature(function).parameters
        if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        assert {keyword.arg for keyword in call.keywords} <= set(parameters), ast.unparse(call)


def _module(name: str) -> Any:
    """Return a module, or None for one that is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] in ("evalkit", "torch"):
            raise
        return None


def _value(node: ast.AST, names: dict[str, Any]) -> Any:
    """Return what a dotted name means, None where the page alone knows."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        of = _value(node.value, names)
        return None if of is None else getattr(of, node.attr)
    return None


@pytest.mark.parametrize("path", PAGES)
def test_python_is_fenced(path: str) -> None:
    """So that it runs."""
    code = r"^ {4}(import|from) \w|^ {4}(\w+ = )?(evalkit|lin|torch)\.\w+\("
    assert [b for b in indented(page(path)) if re.search(code, b, re.MULTILINE)] == []


def test_nothing_is_said_twice() -> None:
    """Rows of tables are one line each, and may have heads and cells in common."""
    said: dict[tuple[str, ...], str] = {}
    twice = []
    for path in PAGES:
        bare = re.sub(r"^\|.*\n\| ?--.*\n", "", prose(page(path)), flags=re.MULTILINE)
        rows = re.findall(r"^\|.{60,}$", bare, re.MULTILINE)
        words = re.sub(r"^\|.*$", "|", bare, flags=re.MULTILINE).split()
        runs = [tuple(words[i : i + 12]) for i in range(len(words) - 11)]
        for part in [*((row,) for row in rows), *(run for run in runs if "|" not in run)]:
            if part in said:
                twice.append(f"{said[part]} and {path}: {' '.join(part)[:90]}")
            said[part] = path
    assert twice == []


def test_the_glossary_is_in_order_with_a_sentence_and_a_place_for_each_word() -> None:
    rows = re.findall(r"^\| (\[.*?\)) \| (.*) \|$", document("concepts/glossary.md"), re.MULTILINE)
    words = [re.match(r"\[(.*)\]\(.+\)", entry)[1] for entry, _ in rows]  # type: ignore[index]
    assert len(words) > 60
    assert words == sorted(words, key=str.lower)
    assert [said for _, said in rows if ". " in said or said.endswith(".")] == []


def test_the_picture_of_the_house_is_that_of_the_floors() -> None:
    """python docs/hooks/house.py draws it again."""
    house = runpy.run_path(str(ROOT / "docs/hooks/house.py"))
    assert (ROOT / "docs/assets/house.svg").read_text(encoding="utf-8") == house["picture"]()


def test_contributing_names_files_that_exist() -> None:
    text = page("CONTRIBUTING.md")
    held = re.findall(r"`(?:tests/)?(test_\w+\.py)`", text)
    assert [name for name in held if not (ROOT / "tests" / name).is_file()] == []
    inside = re.findall(r"`((?:\w+/)*\w+\.py)`", text)
    places = [ROOT, ROOT / "evalkit", ROOT / "evalkit/figures", ROOT / "tests", ROOT / "docs"]
    assert [n for n in inside if not any((place / n).exists() for place in places)] == []
    for room in re.findall(r"a file in `(\w+)`", text):
        assert (ROOT / "evalkit" / room).is_dir() or room == "docs"


def test_examples_are_found() -> None:
    """What the tests here rest on: blocks, what is given, and reasons are read."""
    text = (
        "<!-- given: x = 1 -->\n\n```python\nx\n```\n\n<!-- not run: no -->\n\n```python\ny\n```\n"
    )
    one, other = python_blocks(text)
    assert (one.text, one.given, one.not_run) == ("x\n", "x = 1\n", "")
    assert (other.text, other.given, other.not_run) == ("y\n", "", "no")
    assert len(WITH_PYTHON) >= 9
