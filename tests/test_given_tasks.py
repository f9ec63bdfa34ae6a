"""Models as users have them, as the models of tasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evalkit.bench.cost import _problem
from evalkit.cli import main
from evalkit.settings import Settings
from evalkit.tasks import Task
from tests.support.given import (
    TARGETS,
    Around,
    inputs,
    plain,
)

# --- as the model of a task -----------------------------------------------------------------------

CODE = """
import torch
from torch import nn
import evalkit

def plain():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = plain().bfloat16()
    def forward(self, x):
        return {"logits": self.inner(x.bfloat16()).float()}

def inference():
    with torch.inference_mode():
        return plain()

def data():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(12, 4, generator=draw), torch.arange(12) % 3

def task(model):
    return evalkit.Task(model=model, data=data, recipe=evalkit.tasks.Recipe(epochs=1, batch_size=6))

whole = task(plain)
compiled = task(lambda: torch.compile(plain(), backend="aot_eager"))
half = task(Half)
inference = task(inference)
lazy = task(lambda: nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 3)))
failing = task(lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(4, 3)))
"""


@pytest.fixture
def code(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def score(folder: str, name: str) -> int:
    options = ["--methods", "sgd,ief", "--batches", "1", "--batch-size", "6"]
    return main(["score", folder, "--task", f"mine.py:{name}", *options, "--out", f"run-{name}"])


@pytest.mark.parametrize("name", ["compiled", "half", "inference"])
def test_tasks_with_such_models(name: str, code: Any) -> None:
    assert main(["train", f"mine.py:{name}", "--out", "saved"]) == 0
    assert score("saved", name) == 0
    if name != "half":
        assert score("saved", "whole") == 0
        runs = [(code / f"run-{one}" / "scores.csv").read_text() for one in (name, "whole")]
        assert runs[0] == runs[1]


def test_the_cost_of_a_model_that_casts_to_half_precision() -> None:
    def rule(model: Any, x: Tensor) -> Any:
        return model(x.bfloat16())

    task = Task(lambda: Around(rule, plain(torch.bfloat16)), lambda: (inputs(), TARGETS))
    problem = _problem(task, Settings(("sgd",), (0.0,), 1, 6, 0))
    assert problem.step() > 0
    assert problem.scores(("sgd",))[0].dtype == "float32"


@pytest.mark.parametrize(
    ("name", "told"),
    [("lazy", "module '0' (LazyLinear)"), ("failing", "mat1 and mat2")],
)
def test_tasks_whose_models_are_refused(
    name: str, told: str, code: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"mine.py:{name}", "--out", "saved"]) == 2
    message = capsys.readouterr().err.strip()
    assert told in message
    assert "\n" not in message


def test_the_model_of_a_task_is_the_one_inside() -> None:
    task = Task(lambda: torch.compile(plain(), backend="aot_eager"), lambda: (inputs(), TARGETS))
    assert type(task.build_model(0)) is nn.Sequential
