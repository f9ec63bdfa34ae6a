"""What tests share is in ``tests/support``, refusals have reasons, and the benchmarks start."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports from the tests, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "tests" if node.level else node.module
            names |= {f"{module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {name for name in names if name.startswith("tests.")}


def test_no_test_module_is_imported() -> None:
    found = {
        str(path.relative_to(TESTS)): names
        for path in sorted(TESTS.rglob("*.py"))
        if (names := {name for name in imported(path) if name.split(".")[1].startswith("test_")})
    }
    assert found == {}


def test_all_else_is_in_support() -> None:
    allowed = {"__init__.py", "conftest.py"}
    names = {path.name for path in TESTS.glob("*.py") if not path.name.startswith("test_")}
    assert names <= allowed


@pytest.mark.parametrize("name", sorted(path.stem for path in TESTS.glob("benchmarks/*.py")))
def test_benchmarks_are_imported_without_their_peers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that has moved is found here, not when somebody measures."""
    for peer in ("curvlinops", "backpack"):
        monkeypatch.setitem(sys.modules, peer, None)
    for known in [known for known in sys.modules if known.startswith("tests.benchmarks")]:
        monkeypatch.delitem(sys.modules, known)
    importlib.import_module(f"tests.benchmarks.{name}")


def drops_the_reason(node: ast.AST) -> bool:
    """Whether a refusal is expected whose sentence nothing looks at."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func) in ("refusal", "sentence")
    if not isinstance(node, ast.withitem) or node.optional_vars is not None:
        return False
    call = ast.unparse(node.context_expr)
    return "pytest.raises" in call and "EvalkitError" in call and "match=" not in call


def test_each_refusal_is_held_to_a_word_of_its_reason() -> None:
    found = [
        f"{path.name}: {ast.unparse(node)}"
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if drops_the_reason(node)
    ]
    assert found == []
