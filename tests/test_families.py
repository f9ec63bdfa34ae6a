"""Settings of tasks: as values, as text and on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evalkit import EvalkitError
from evalkit.cli import main
from evalkit.tasks import Task, families, load_task, register_family, setting_names
from evalkit.tasks.families import make_task, registered_task
from tests.support.folders import sentence


def build(width: int = 3, bias: bool = True, scale: float = 1.0, note: str = "") -> Task:
    return Task(
        model=lambda: nn.Linear(4, width, bias=bias),
        data=lambda: (torch.full((6, 4), scale), torch.zeros(6, dtype=torch.int64)),
    )


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a family that ends with the test."""
    entries = dict(families._REGISTRY._entries)
    monkeypatch.setattr(families._REGISTRY, "_entries", entries)
    register_family("linear", build)
    return "linear"


# --- settings ------------------------------------------------------------------------------------


def test_settings_as_values_and_as_text(family: str) -> None:
    assert setting_names(family) == ("width", "bias", "scale", "note")
    default = registered_task(family)
    assert default.name == "linear"
    assert default.settings == {"width": 3, "bias": True, "scale": 1.0, "note": ""}
    text = {"width": "5", "bias": "False", "scale": "2", "note": "7"}
    values = {"width": 5, "bias": False, "scale": 2, "note": 7}
    for settings in (text, values):
        task = load_task(family, settings)
        assert task.settings == {"width": 5, "bias": False, "scale": 2.0, "note": "7"}
        kinds = [type(value) for value in task.settings.values()]
        assert kinds == [int, bool, float, str]
        assert [tuple(p.shape) for p in task.build_model(0).parameters()] == [(5, 4)]
        assert float(task.training_samples().inputs.max()) == 2.0


def test_a_single_task_has_no_settings() -> None:
    assert setting_names("digits-mlp") == setting_names("no such task") == ()
    assert "it has none: leave them out" in sentence(lambda: load_task("digits-mlp", {"a": "1"}))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"widht": "5"}, "unknown setting 'widht'; did you mean 'width'?"),
        ({"width": "wide"}, "an integer for the setting 'width', found 'wide'; pass one such as"),
        ({"width": "2.5"}, "an integer for the setting 'width', found '2.5'"),
        ({"width": True}, "an integer for the setting 'width', found True"),
        ({"bias": "yes"}, "true or false for the setting 'bias', found 'yes'"),
        ({"bias": 1}, "true or false for the setting 'bias', found 1"),
        ({"scale": "big"}, "a number for the setting 'scale', found 'big'"),
        ({"scale": "nan"}, "a finite number for the setting 'scale', found 'nan'"),
    ],
)
def test_settings_that_do_not_fit(family: str, settings: dict[str, Any], expected: str) -> None:
    assert expected in sentence(lambda: load_task(family, settings))


def test_a_family_wants_a_new_name(family: str) -> None:
    with pytest.raises(EvalkitError, match="registered already"):
        register_family(family, build)


def test_functions_of_other_kinds() -> None:
    def anything(*arguments: int, **settings: int) -> Task:
        return build()

    assert make_task(anything, "mine").settings == {}

    def listed(sizes: tuple[int, ...] = (1, 2)) -> Task:
        return build(len(sizes))

    assert make_task(listed, "mine").build_model(0).out_features == 2
    text = sentence(lambda: make_task(listed, "mine", {"sizes": "1"}))
    assert "a default that is text or a number for the setting 'sizes', found (1, 2)" in text


def test_a_collate_function_that_fails() -> None:
    def fail(inputs: Any, targets: Any) -> Any:
        raise KeyError("pixels")

    task = Task(model=build().model, data=build().data, collate=fail)
    text = sentence(lambda: task.training_samples().take(slice(2)))
    assert "the collate function of the task to run, found KeyError: 'pixels'" in text


REFUSED = {
    "glue-cola": [
        ({"adapter": "loar"}, "lora, prompt or none for the setting 'adapter', found 'loar'"),
        ({"labels": "last"}, "all or first for the setting 'labels', found 'last'"),
        ({"samples": "-1"}, "of at least 0 for the setting 'samples', found -1"),
        ({"max_length": "0"}, "of at least 1 for the setting 'max_length', found 0"),
        ({"tokeniser": "x"}, "did you mean 'tokenizer'?"),
    ],
    "vit-cifar10": [
        ({"adapter": "prompt"}, "lora or none for the setting 'adapter', found 'prompt'"),
        ({"size": "0"}, "of at least 1 for the setting 'size', found 0"),
        ({"deviation": "0"}, "above 0.0 for the setting 'deviation', found 0.0"),
    ],
    "mlp-cifar10": [({"samples": -5}, "of at least 0 for the setting 'samples', found -5")],
    "mlp-fashion-mnist": [({"samples": -5}, "of at least 0 for the setting 'samples'")],
}


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [(name, *case) for name, cases in REFUSED.items() for case in cases],
)
def test_settings_of_the_bundled_tasks(name: str, settings: dict[str, Any], expected: str) -> None:
    assert expected in sentence(lambda: load_task(name, settings))


# --- the command line ----------------------------------------------------------------------------


def test_the_list_fits_a_window_and_names_the_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (80, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        start = next(i for i, line in enumerate(lines) if line.split()[:1] == ["glue-rte"])
        entry = " ".join(lines[start : start + 3])
        for name in setting_names("glue-rte"):
            assert name in entry
        assert "  digits-mlp" in lines


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["adapter"], "expected NAME=VALUE, found 'adapter'"),
        (["=lora"], "expected NAME=VALUE, found '=lora'"),
        (["adapter=loar"], "found 'loar'"),
        (["samples=some"], "an integer for the setting 'samples', found 'some'"),
        (["adaptor=lora"], "did you mean 'adapter'"),
    ],
)
def test_settings_of_the_command_line(
    settings: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [part for text in settings for part in ("--set", text)]
    assert main(["train", "glue-cola", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
