"""A plugin of pytest that keeps how each test ended, and runs again only what has not passed.

``-p tests.gpu.passed --passed FILE``: a line per test, its outcome and its name. What a line calls
``failed``, or what has none, is run; a start that was cut off is gone on with.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

PASSED, SKIPPED, FAILED = "passed", "skipped", "failed"
_NEW = ".new"
"""The end of the file that is written while another is read: by workers too, as they start."""


def outcomes(path: Path) -> dict[str, str]:
    """Return how each test ended last, by its name."""
    found: dict[str, str] = {}
    for one in (path, path.with_name(path.name + _NEW)):
        if one.exists():
            for text in one.read_text(encoding="utf-8").splitlines():
                outcome, _, name = text.partition("\t")
                if name:  # the last line may be half of one
                    found[name] = outcome
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the file be named."""
    parser.addoption("--passed", type=Path, help="keep outcomes here, and run no test that passed")


def pytest_configure(config: pytest.Config) -> None:
    """Join what the last start wrote, before any worker reads it."""
    path: Path | None = config.getoption("--passed")
    if path is not None and not hasattr(config, "workerinput"):
        known = outcomes(path)
        path.write_text(_lines(known.items()), encoding="utf-8")
        path.with_name(path.name + _NEW).unlink(missing_ok=True)
        config.pluginmanager.register(_Keeper(path.with_name(path.name + _NEW)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has passed, or was skipped."""
    path: Path | None = config.getoption("--passed")
    if path is None:
        return
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = (line.partition("\t") for line in text.splitlines())
    known = {name for outcome, _, name in lines if outcome != FAILED}
    done = [item for item in items if item.nodeid in known]
    if done:
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item.nodeid not in known]


class _Keeper:
    """Writes down how each test ends, in the process that hears of all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome of a test: of its call, or of what failed or skipped it before."""
        if report.when == "call" or report.outcome != PASSED:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_lines([(report.nodeid, report.outcome)]))


def _lines(known: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{outcome}\t{name}\n" for name, outcome in known)
