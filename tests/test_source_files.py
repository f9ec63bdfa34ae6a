"""The user's own code behind a run: the files of functions and all that they import."""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path

import pytest

from evalkit.checkpoints import open_trajectory
from evalkit.errors import EvalkitError
from evalkit.names import task_name
from evalkit.study.running import run_study
from evalkit.study.source_files import sources
from evalkit.tasks import load_task
from tests.support.small_studies import SMALL, save_checkpoint

TASK = """
import numpy
import torch
import evalkit
from helpers_of_a_task import shapes

def model():
    return torch.nn.Linear(8, shapes.CLASSES)

def data():
    import lazy_of_a_task
    return lazy_of_a_task.data()

task = evalkit.Task(model=model, data=data)
"""
LAZY = """
import torch

def data():
    return torch.ones(64, 8).cumsum(0) / 64, torch.arange(64) % 3
"""


@pytest.fixture
def task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    package = tmp_path / "helpers_of_a_task"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shapes.py").write_text("from . import numbers\nCLASSES = numbers.THREE\n")
    (package / "numbers.py").write_text("THREE = 3\n")
    (tmp_path / "lazy_of_a_task.py").write_text(LAZY)
    (tmp_path / "unused.py").write_text("")
    path = tmp_path / "mine.py"
    path.write_text(TASK)
    yield path
    for name in set(sys.modules) - before:
        if name.startswith(("helpers_of_a_task", "lazy_of_a_task")):
            del sys.modules[name]


def test_files_that_a_task_imports_are_found(task_file: Path) -> None:
    task = load_task(f"{task_file}:task")
    found = sources(task.parts())
    assert set(found) == {
        "mine.py",
        "helpers_of_a_task/__init__.py",
        "helpers_of_a_task/shapes.py",
        "helpers_of_a_task/numbers.py",
        "lazy_of_a_task.py",
    }
    assert found["mine.py"] == sha256(task_file.read_bytes()).hexdigest()
    # The same whether what is imported late was imported already.
    task.training_samples()
    assert sources(task.parts()) == found


@pytest.mark.parametrize("changed", ["helpers_of_a_task/numbers.py", "lazy_of_a_task.py"])
def test_a_changed_module_of_the_task_does_not_go_on_with_a_run(
    task_file: Path, changed: str
) -> None:
    folder = task_file.parent
    save_checkpoint(folder / "checkpoints", 1)
    trajectory, spec = open_trajectory(folder / "checkpoints"), f"{task_file}:task"
    run_study(trajectory, load_task(spec), SMALL, folder / "run")
    with (folder / changed).open("a") as file:
        file.write("# another\n")
    with pytest.raises(EvalkitError, match=f"another code in {changed}"):
        run_study(trajectory, load_task(spec), SMALL, folder / "run")


def test_code_of_added_methods_extends_a_run(task_file: Path) -> None:
    from evalkit.storage.run_folder import read_run
    from evalkit.tasks.loading import load_code

    folder = task_file.parent
    save_checkpoint(folder / "checkpoints", 1)
    trajectory, task = open_trajectory(folder / "checkpoints"), load_task(f"{task_file}:task")
    run_study(trajectory, task, SMALL, folder / "run")
    method = folder / "method_of_a_test.py"
    text = "import evalkit\n\n@evalkit.method('doubled')\ndef doubled(lin, damping):\n"
    method.write_text(text + "    return 2 * lin.gradient\n")
    load_code(str(method))
    more = type(SMALL)(methods=("sgd", "doubled"), batches=2, batch_size=8)
    run_study(trajectory, task, more, folder / "run")
    assert "method_of_a_test.py" in read_run(folder / "run").provenance["code"]
    method.write_text(text + "    return 3 * lin.gradient\n")
    with pytest.raises(EvalkitError, match=r"another code in method_of_a_test\.py"):
        run_study(trajectory, task, more, folder / "run")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("t.py:task", "t.py:task"),
        ("./t.py:task", "t.py:task"),
        ("/some/where/t.py:make", "t.py:make"),
        ("..\\t.py:task", "t.py:task"),
        ("package.module:task", "package.module:task"),
        ("digits-mlp", "digits-mlp"),
    ],
)
def test_a_task_by_another_path_is_the_same_task(spec: str, name: str) -> None:
    assert task_name(spec) == name
