"""Tasks: found by every form of specification, and refused in one sentence otherwise."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import evalkit
from evalkit.errors import EvalkitError
from evalkit.tasks import Recipe, Samples, Task, digits_mlp, load_task, register, task_names
from evalkit.training import optimizers

USER_FILE = """
from dataclasses import dataclass

import torch

import evalkit
from companion_of_the_task import CLASSES


@dataclass(frozen=True)
class Shape:
    inputs: int = 4


def build():
    return torch.nn.Linear(Shape().inputs, CLASSES)


def load():
    return torch.randn(10, 4), torch.arange(10) % CLASSES


task = evalkit.Task(model=build, data=load)
named = evalkit.Task(model=build, data=load, name="mine")
shape = Shape()


def make_task():
    return task


def make_number():
    return 3


def needs_argument(size):
    return task
"""


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "companion_of_the_task.py").write_text("CLASSES = 3\n")
    path = tmp_path / "mytask.py"
    path.write_text(USER_FILE)
    return path


def sentence(spec: str) -> str:
    with pytest.raises(EvalkitError) as caught:
        load_task(spec)
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def linear_task(**changes: object) -> Task:
    settings: dict = {
        "model": lambda: nn.Linear(4, 3),
        "data": lambda: (torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64)),
        "name": "linear",
    }
    return Task(**{**settings, **changes})


def test_registered_task() -> None:
    task = load_task("digits-mlp")
    assert "digits-mlp" in task_names()
    training, validation = task.training_samples(), task.validation_samples()
    assert validation is not None
    assert (len(training), len(validation)) == (1437, 360)
    assert isinstance(training.inputs, torch.Tensor)
    assert isinstance(validation.inputs, torch.Tensor)
    assert float(training.inputs.min()) == 0.0
    assert float(training.inputs.max()) == 1.0
    # The split is a partition: no image is in both parts.
    images = torch.cat([training.inputs, validation.inputs])
    assert len(images.unique(dim=0)) == 1797
    assert sum(p.numel() for p in task.build_model(0).parameters()) == 8970


@pytest.mark.parametrize("attribute", ["task", "make_task"])
def test_task_from_a_file(user_file: Path, attribute: str) -> None:
    spec = f"{user_file}:{attribute}"
    task = load_task(spec)
    assert task.name == f"mytask.py:{attribute}"
    assert len(task.training_samples()) == 10
    assert isinstance(task.build_model(0), nn.Linear)


def test_a_name_of_its_own_is_kept(user_file: Path) -> None:
    assert load_task(f"{user_file}:named").name == "mine"


def test_records_of_a_task_file_can_be_pickled(user_file: Path) -> None:
    shape = sys.modules[load_task(f"{user_file}:task").model.__module__].shape
    assert pickle.loads(pickle.dumps(shape)) == shape


def test_an_unchanged_file_runs_once(user_file: Path) -> None:
    first = load_task(f"{user_file}:named")
    assert load_task(f"{user_file}:named") is first
    user_file.write_text(USER_FILE.replace("mine", "changed"))
    assert load_task(f"{user_file}:named").name == "changed"


def test_task_from_a_module_in_the_working_folder(
    user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = user_file.parent / "package_with_a_task"
    package.mkdir()
    (package / "__init__.py").touch()
    user_file.rename(package / "module.py")
    monkeypatch.chdir(user_file.parent)
    task = load_task("package_with_a_task.module:task")
    assert task.name == "package_with_a_task.module:task"
    assert load_task("evalkit.tasks.digits_mlp:task").name == "digits-mlp"


def test_unknown_names(user_file: Path) -> None:
    assert "did you mean 'digits-mlp'?" in sentence("digit-mlp")
    assert "digits-mlp" in sentence("")
    assert f"{user_file}:task" in sentence(str(user_file))
    assert "did you mean 'task'" in sentence(f"{user_file}:taks")
    assert "did you mean 'mytask.py'" in sentence(f"{user_file.parent}/my_task.py:task")
    assert "check the path" in sentence("/no/such/folder/file.py:task")
    assert "no module named 'nosuchpackage'" in sentence("nosuchpackage.module:task")
    assert "no module named 'evalkit.nothing'" in sentence("evalkit.nothing:task")
    assert "write both parts" in sentence(":task")


def test_attributes_that_are_no_task(user_file: Path) -> None:
    assert "found Shape" in sentence(f"{user_file}:shape")
    assert "a function that returns int" in sentence(f"{user_file}:make_number")
    assert "a function that needs arguments" in sentence(f"{user_file}:needs_argument")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x = 1\ny = x / 0\n", "ZeroDivisionError: division by zero (FILE, line 2)"),
        ("def broken(:\n", "SyntaxError: invalid syntax"),
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named"),
        ("\nraise SystemExit(3)\n", "SystemExit: 3 (FILE, line 2)"),
        ("def f():\n    raise ValueError('a\\nb')\nf()\n", "ValueError: a b (FILE, line 2)"),
    ],
)
def test_user_code_that_fails(user_file: Path, code: str, expected: str) -> None:
    user_file.write_text(code)
    assert expected.replace("FILE", str(user_file)) in sentence(f"{user_file}:task")
    assert _modules_of(user_file) == []


def _modules_of(path: Path) -> list[str]:
    return [
        name
        for name, module in list(sys.modules.items())
        if getattr(module, "__file__", None) == str(path)
    ]


def test_a_missing_import_of_a_module_is_a_fault_of_its_code(
    user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user_file.parent / "module_with_a_fault.py").write_text("import nothing_of_that_name\n")
    monkeypatch.chdir(user_file.parent)
    text = sentence("module_with_a_fault:task")
    assert "expected the module 'module_with_a_fault' to run" in text
    assert "line 1" in text


def test_a_user_task_cannot_take_a_registered_name(user_file: Path) -> None:
    user_file.write_text(USER_FILE.replace('"mine"', '"digits-mlp"'))
    assert "choose another name" in sentence(f"{user_file}:named")


def test_failing_functions_of_a_task() -> None:
    def fail() -> nn.Module:
        raise KeyError("weights")

    with pytest.raises(EvalkitError, match=r"the model of task 'linear' to run.*KeyError.*line"):
        linear_task(model=fail).build_model(0)
    with pytest.raises(EvalkitError, match=r"expected the model of task.*Module, found int"):
        linear_task(model=lambda: 3).build_model(0)
    with pytest.raises(EvalkitError, match=r"the data of task.*found Tensor"):
        linear_task(data=lambda: torch.zeros(3)).training_samples()
    with pytest.raises(EvalkitError, match=r"inputs: 3, targets: 2"):
        linear_task(data=lambda: (torch.zeros(3, 4), torch.zeros(2))).training_samples()
    assert linear_task().validation_samples() is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": nn.Linear(4, 3)}, "found Linear"),
        ({"data": None}, "the data of a task to be a function without arguments, found NoneType"),
        ({"data": torch.zeros(3)}, "found Tensor"),
        ({"likelihood": "categorial"}, "did you mean 'categorical'"),
        ({"recipe": {"epochs": 3}}, "evalkit.tasks.Recipe"),
    ],
)
def test_wrong_arguments_of_a_task(changes: dict, expected: str) -> None:
    with pytest.raises(EvalkitError) as caught:
        linear_task(**changes)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 0}, "epochs to be an integer of at least 1, found 0"),
        ({"batch_size": -1}, "batch size to be an integer of at least 1, found -1"),
        ({"checkpoint_every": 1.5}, "checkpoint every to be an integer"),
        ({"learning_rate": 0.0}, "learning rate above 0, found 0.0"),
        ({"learning_rate": float("nan")}, "learning rate above 0, found nan"),
        ({"weight_decay": -0.1}, "weight decay of at least 0"),
        ({"optimizer": "adamv"}, "did you mean"),
        ({"schedule": "linaer"}, "unknown schedule 'linaer'; did you mean 'linear'"),
        ({"schedule": "linear:at=1"}, "schedule 'linear': unknown setting 'at'; it has none"),
        ({"schedule": "step:at"}, "as name=value in schedule 'step:at', found 'at'"),
        ({"schedule": "step:at=15"}, "a share from 0 to 1 as the setting 'at'"),
        ({"schedule": "step:factor=-1"}, "a factor of at least 0 in schedule 'step', found -1"),
        ({"damping": 1e-3}, "expected no damping for the optimizer 'adamw', which has none"),
        ({"optimizer": "adam", "momentum": 0.9}, "choose one that has it: sgd, muon"),
        ({"optimizer": "sgd", "momentum": 1.0}, "`momentum` from 0 to below 1, found 1.0"),
        ({"optimizer": "sgd", "momentum": "0.9"}, "`momentum` from 0 to below 1, found '0.9'"),
    ],
)
def test_wrong_values_of_a_recipe(changes: dict, expected: str) -> None:
    with pytest.raises(EvalkitError) as caught:
        Recipe(**changes)
    assert expected in str(caught.value)


def test_samples_of_every_form() -> None:
    a, b, targets = torch.arange(5), torch.arange(10).reshape(5, 2), torch.arange(5) * 10
    indices = torch.tensor([4, 1])
    inputs, taken = Samples(a, targets).take(indices)
    assert isinstance(inputs, torch.Tensor)
    assert inputs.tolist() == [4, 1]
    assert taken.tolist() == [40, 10]
    inputs, _ = Samples((a, b), targets).take(indices)
    assert isinstance(inputs, tuple)
    assert inputs[1].tolist() == [[8, 9], [2, 3]]
    inputs, _ = Samples({"a": a, "b": b}, targets).take(indices)
    assert isinstance(inputs, dict)
    assert inputs["b"].tolist() == [[8, 9], [2, 3]]


@pytest.mark.parametrize(
    ("inputs", "targets", "expected"),
    [
        (torch.zeros(3, 2), torch.zeros(4), "inputs: 3, targets: 4"),
        ({"a": torch.zeros(3), "b": torch.zeros(2)}, torch.zeros(3), "inputs['b']: 2"),
        ((torch.zeros(3), [1, 2, 3]), torch.zeros(3), "inputs[1] to be a tensor"),
        ((), torch.zeros(3), "found tuple"),
        (torch.zeros(3), torch.tensor(1.0), "targets to be a tensor"),
        (torch.zeros(0, 2), torch.zeros(0), "at least one sample"),
    ],
)
def test_samples_that_do_not_fit(inputs: object, targets: torch.Tensor, expected: str) -> None:
    with pytest.raises(EvalkitError) as caught:
        Samples(inputs, targets)  # type: ignore[arg-type]
    assert expected in str(caught.value)


def test_models_are_seeded_and_the_ambient_generator_is_not() -> None:
    task, before = load_task("digits-mlp"), torch.get_rng_state()
    first, again, other = (
        torch.cat([p.flatten() for p in task.build_model(seed).parameters()]) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_digits_are_those_of_scikit_learn_without_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bunch = load_digits()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # cannot be imported
    pixels, labels = digits_mlp._table()
    assert (pixels == bunch.data).all()
    assert (labels == bunch.target).all()


def test_registration_wants_a_new_name() -> None:
    with pytest.raises(EvalkitError, match="registered already"):
        register(linear_task(name="digits-mlp"))
    with pytest.raises(EvalkitError, match="expected a name"):
        register(linear_task(name=""))


@pytest.mark.parametrize("name", optimizers.names())
def test_optimizers_descend(name: str) -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).requires_grad_(False)
    model[0].weight.fill_(1.0).requires_grad_(True)
    given = {"learning_rate": 0.1, "weight_decay": 0.01, "likelihood": "gaussian"}
    optimizer: Any = optimizers.build(name, model, optimizers.settings_of(name, given))
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    weight, zero = model[0].weight, torch.zeros(1, 1)
    if optimizers.steps_on_outputs(name):
        optimizer.step(lambda: (nn.functional.linear(zero + 1, weight), zero))
    else:
        weight.square().sum().backward()
        optimizer.step()
    assert 0.0 < weight.item() < 1.0


def test_task_is_public() -> None:
    assert evalkit.Task is Task
