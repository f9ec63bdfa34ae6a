"""What tests share is in ``tests/support``, and the benchmarks can be started."""

from __future__ import annotations

import ast
from pathlib import Path

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
