"""What is imported only where it is needed: two interpreters in all, since each takes seconds."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import Any

import pytest

from evalkit.extras import INSTALL
from tests.support.folders import BUNDLED

WITHOUT_TORCH = (
    "errors",
    "version",
    "extras",
    "doubts",
    "machine",
    "names",
    "registry",
    "settings",
    "overlap",
    "toy_tables",
    "storage.files",
    "storage.json_files",
    "storage.rows",
    "storage.columns",
    "storage.tables",
    "storage.run_folder",
    "storage.lost_rows",
    "study.identity",
    "study.notes",
    "study.source_files",
    "tasks.bundled",
    "results.intervals",
    "results.spreads",
    "results.marks",
    "results.summaries",
    "results.pairs",
    "results.sweeps",
    "results.comparisons",
    "figures",
    "gate",
    "report.page",
    "report.writing",
    "report.comparison",
    "export.writing",
    "storage.training_folder",
)
COMMANDS = (
    "train",
    "doctor",
    "score",
    "status",
    "report",
    "compare",
    "export",
    "check",
    "toy",
    "cost",
    "errors",
    "list",
)
BAD = (
    ["score", str(BUNDLED), "--methods", "sgd,iefs"],
    ["score", "no-such-folder"],
    ["doctor", "no-such-folder"],
    ["doctor", "digits-mpl"],
    ["doctor", "digits-mlp", "--methods", "iefs"],
    ["score", str(BUNDLED), "--dtype", "float12"],
    ["score", str(BUNDLED), "--damping", "1", "--damping", "2"],
    ["cost", "digits-mlp", "--methods", "iefs"],
    ["train", "digits-mlp", "--optimizer", "adamx", "--out", "new"],
    ["report", "no-such-run"],
    ["compare", "no-such-run"],
    ["export", "no-such-run", "--to", "parquet"],
)
"""Commands with a typing error."""

LIGHT = """
import contextlib, importlib, io, json, sys
from evalkit.cli import main
asked = json.loads(sys.argv[1])
found = {"statuses": [], "printed": {}, "torch": {}}
for command in asked["commands"]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main(command)
    found["statuses"].append(status)
    found["printed"][" ".join(command)] = printed.getvalue()
    found["torch"][" ".join(command)] = "torch" in sys.modules
for name in asked["modules"]:
    importlib.import_module(f"evalkit.{name}")
    found["torch"][name] = "torch" in sys.modules
print(json.dumps(found))
"""
HEAVY = """
import json, sys
sys.modules["transformers"] = None  # as where it is not installed
import evalkit.study.running, evalkit.testing
found = {"pytest": "pytest" in sys.modules}
try:
    from evalkit.callback import ScoreCallback
except evalkit.EvalkitError as error:
    found["sentence"] = str(error)
print(json.dumps(found))
"""


def interpreter(code: str, *arguments: str) -> Any:
    """What a new interpreter prints, as JSON."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@functools.cache
def light() -> Any:
    """What commands that compute nothing return and print, and whether torch is there after each.

    Commands come first, so that no module of the list has imported what they need.
    """
    helps = [["--help"], *([command, "--help"] for command in COMMANDS), ["list"]]
    asked = {"commands": [*BAD, *helps], "modules": WITHOUT_TORCH}
    return interpreter(LIGHT, json.dumps(asked))


@functools.cache
def heavy() -> Any:
    """What is found without transformers and outside of pytest."""
    return interpreter(HEAVY)


def test_a_typing_error_is_found_before_torch_is_loaded() -> None:
    assert light()["statuses"][: len(BAD)] == [2] * len(BAD)
    assert not any(light()["torch"][" ".join(command)] for command in BAD)


@pytest.mark.parametrize("command", ["--help", *(f"{name} --help" for name in COMMANDS), "list"])
def test_help_and_lists_do_not_import_torch(command: str) -> None:
    assert not light()["torch"][command]
    if command.endswith("--help"):
        assert "Examples:" in light()["printed"][command]


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_tables_figures_and_reports_do_not_import_torch(name: str) -> None:
    assert not light()["torch"][name]


def test_the_helper_of_tests_does_not_import_pytest() -> None:
    assert heavy()["pytest"] is False


def test_transformers_is_asked_for_in_a_sentence_and_only_by_the_callback() -> None:
    assert INSTALL.format(extra="hf") in heavy()["sentence"]
