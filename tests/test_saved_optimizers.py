"""The method ``optimizer`` on folders and files as libraries write them."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import evalkit
from evalkit.checkpoints import open_trajectory
from evalkit.checkpoints.optimizer_files import read_optimizer
from evalkit.checkpoints.tensors import write_tensor_file
from evalkit.cli import main
from evalkit.errors import EvalkitError
from evalkit.training.saved_optimizers import restored
from tests.support.unlisted import unlist_states

FILE = """import torch
from torch import nn
import evalkit
from tests.support.small_studies import tensors

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))

task = evalkit.Task(model=model, data=tensors)
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        inputs = torch.randn(16, 8, generator=generator)
        targets = torch.randint(0, 3, (16,), generator=generator)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    (tmp_path / "files").mkdir()
    return tmp_path


def score(folder: Path, methods: str = "sgd,optimizer", *more: str, place: str = "files") -> int:
    given = ["--task", f"{folder / 'mine.py'}:task", "--methods", methods, *more]
    given += ["--batches", "2", "--batch-size", "8", "--out", f"{folder / 'run'}"]
    return main(["score", f"{folder / place}", *given])


def scores(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "run" / "scores.csv")


OPTIMIZERS: dict[str, Any] = {
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.1),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-3, amsgrad=True),
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.1),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-3, momentum=0.9),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters(), lr=1e-2),
    "RAdam": lambda m: torch.optim.RAdam(m.parameters(), lr=1e-2),
    "NAdam": lambda m: torch.optim.NAdam(m.parameters(), lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plain_file_tells_class_and_settings(folder: Path, name: str) -> None:
    """What is read from the file takes the very step that the live optimizer takes."""
    model = network()
    optimizer = OPTIMIZERS[name](model)
    stepped(model, optimizer)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, folder / "files" / "step-3.pt")
    (checkpoint,) = open_trajectory(folder / "files").checkpoints
    read = restored(read_optimizer(checkpoint), model)
    assert type(read) is type(optimizer)
    assert_same_step(model, optimizer, read)


def assert_same_step(
    model: nn.Module, one: torch.optim.Optimizer, other: torch.optim.Optimizer
) -> None:
    inputs, targets = torch.randn(6, 8), torch.arange(6) % 3
    lin = evalkit.linearize(model, inputs, targets)
    steps = [evalkit.update("optimizer", lin, optimizer=given) for given in (one, other)]
    assert torch.equal(*steps)
    assert steps[0].any()


def test_the_trainers_groups_are_told_with_their_decay(folder: Path) -> None:
    """Decayed parameters come first, biases and normalisations behind: the file numbers them."""
    model = network()
    decayed = [model[0].weight, model[3].weight]
    others = [model[0].bias, model[1].weight, model[1].bias, model[3].bias]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    stepped(model, optimizer)
    place = folder / "files" / "checkpoint-3"
    place.mkdir()
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    torch.save(optimizer.state_dict(), place / "optimizer.pt")
    state = {"global_step": 3, "max_steps": 6, "epoch": 0.5}
    (place / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    (checkpoint,) = open_trajectory(folder / "files").checkpoints
    assert_same_step(model, optimizer, restored(read_optimizer(checkpoint), model))
    assert score(folder) == 0
    (entry,) = json.loads((folder / "run" / "run.json").read_text())["optimizers"]
    assert entry["class"] == "torch.AdamW"
    assert [group["weight_decay"] for group in entry["groups"]] == [0.1, 0.0]
    assert len(entry["sha256"]) == 64


def test_a_checkpoint_of_lightning_is_read(folder: Path) -> None:
    """The layout that Lightning documents; the library itself is not needed."""
    model = network()
    optimizer = OPTIMIZERS["AdamW"](model)
    stepped(model, optimizer)
    content = {
        "epoch": 0,
        "global_step": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        "loops": {},
        "callbacks": {},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
    }
    torch.save(content, folder / "files" / "epoch=0-step=3.ckpt")
    (checkpoint,) = open_trajectory(folder / "files").checkpoints
    assert_same_step(model, optimizer, restored(read_optimizer(checkpoint), model))
    assert score(folder) == 0
    content["optimizer_states"] *= 2
    torch.save(content, folder / "files" / "epoch=0-step=3.ckpt")
    (checkpoint,) = open_trajectory(folder / "files").checkpoints
    with pytest.raises(EvalkitError, match="found 2 optimizers"):
        read_optimizer(checkpoint)


def test_a_training_of_evalkit_is_scored_and_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second start adds rows; an optimizer that was changed in between is another run."""
    task = f"{folder / 'mine.py'}:task"
    shutil.rmtree(folder / "files")
    trained = ["train", task, "--epochs", "1", "--batch-size", "8"]
    assert main([*trained, "--out", f"{folder / 'files'}"]) == 0
    assert score(folder) == 0, capsys.readouterr().err
    found = scores(folder)
    rows = found[found.method == "optimizer"]
    assert rows.gamma.gt(0).all()
    before = (folder / "run" / "scores.csv").read_bytes()
    assert score(folder) == 0
    assert (folder / "run" / "scores.csv").read_bytes() == before
    assert score(folder, "sgd,optimizer,optimizer:decay=false") == 0
    listed = json.loads((folder / "run" / "run.json").read_text())["optimizers"]
    path = folder / "files" / listed[-1]["file"]
    content = torch.load(path, weights_only=True)
    torch.save(content | {"more": 1}, path)
    capsys.readouterr()
    assert score(folder) == 2
    assert "which the training saved with that checkpoint" in capsys.readouterr().err
    unlist_states(folder / "files")
    assert score(folder) == 2
    assert "another optimizer at" in capsys.readouterr().err


def test_states_that_do_not_fit_are_refused_in_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network()
    optimizer = OPTIMIZERS["AdamW"](model)
    stepped(model, optimizer)
    weights, state = model.state_dict(), optimizer.state_dict()
    older = copy.deepcopy(state)
    del older["param_groups"][0]["decoupled_weight_decay"]
    fewer = OPTIMIZERS["AdamW"](model[0]).state_dict()
    other = copy.deepcopy(state)
    other["state"][0]["exp_avg"] = torch.zeros(2, 2)
    odd = copy.deepcopy(state)
    odd["param_groups"][0]["params"] = [[0], {}]
    words, negative = copy.deepcopy(state), copy.deepcopy(state)
    words["param_groups"][0]["lr"] = "fast"
    negative["param_groups"][0]["lr"] = torch.tensor(-1.0)
    diverged = copy.deepcopy(state)
    diverged["state"][0]["exp_avg"] *= float("nan")
    cases: list[tuple[Any, tuple[str, ...], str]] = [
        ({"model": weights, "optimizer": words}, (), "learning rates of at least 0"),
        ({"model": weights, "optimizer": negative}, (), "learning rates of at least 0"),
        ({"model": weights, "optimizer": diverged}, (), "expected a finite step of AdamW"),
        ({"model": weights}, (), "found none under"),
        ({"model": weights, "optimizer": [1]}, (), "found no state_dict() of one"),
        ({"model": weights, "optimizer": odd}, (), "found no state_dict() of one"),
        ({"model": weights, "optimizer": older}, (), "say which with --optimizer"),
        ({"model": weights, "optimizer": fewer}, (), "one of 2 parameters, where the model trains"),
        ({"model": weights, "optimizer": other}, (), "'exp_avg' of shape (2, 2) for '0.weight'"),
        ({"model": weights, "optimizer": state}, ("--optimizer", "adamm"), "did you mean 'adam"),
        ({"model": weights, "optimizer": state}, ("--optimizer", "sgd"), "which SGD has"),
    ]
    for content, more, sentence in cases:
        torch.save(content, folder / "files" / "step-3.pt")
        assert score(folder, "sgd,optimizer", *more) == 2
        assert sentence in " ".join(capsys.readouterr().err.split()), sentence
    torch.save({"model": weights, "optimizer": older}, folder / "files" / "step-3.pt")
    assert score(folder, "sgd,optimizer", "--optimizer", "adamw") == 0
    assert score(folder, "sgd,optimizer", "--set", "optimizer=adamw") == 0
    assert score(folder, "sgd", "--optimizer", "adamw") == 2
    safe = folder / "files" / "step-3.safetensors"
    (folder / "files" / "step-3.pt").unlink()
    write_tensor_file(safe, weights)
    assert score(folder) == 2
    assert "step-3.optimizer.pt" in capsys.readouterr().err


def test_altered_settings_of_a_training_are_a_sentence_about_its_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "files")
    trained = ["train", f"{folder / 'mine.py'}:task", "--epochs", "1", "--batch-size", "8"]
    assert main([*trained, "--out", f"{folder / 'files'}"]) == 0
    path = max((folder / "files").glob("*.optimizer.pt"))
    content = torch.load(path, weights_only=True)
    unlist_states(folder / "files")
    for settings in ({"learning_rate": -1.0}, {"speed": 3}):
        torch.save(content | {"settings": content["settings"] | settings}, path)
        capsys.readouterr()
        assert score(folder) == 2
        sentence = " ".join(capsys.readouterr().err.split())
        assert path.name in sentence
        assert "of its own" not in sentence
    shutil.copy(min((folder / "files").glob("*.optimizer.pt")), path)
    assert score(folder) == 2
    assert "found that after step 0" in " ".join(capsys.readouterr().err.split())


def test_data_that_are_not_finite_are_not_blamed_on_the_learning_rate(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "def data():\n    inputs, targets = tensors()\n    return inputs / 0, targets\n"
    code = FILE.replace("task =", data + "\ntask =").replace("data=tensors", "data=data")
    (folder / "mine.py").write_text(code, encoding="utf-8")
    assert main(["train", f"{folder / 'mine.py'}:task", "--out", f"{folder / 'new'}"]) == 2
    sentence = " ".join(capsys.readouterr().err.split())
    assert "before the first step; correct the data" in sentence


def test_a_state_that_holds_code_is_never_run(folder: Path, capsys: Any) -> None:
    place = folder / "files" / "checkpoint-3"
    place.mkdir()
    torch.save(network().state_dict(), place / "pytorch_model.bin")
    torch.save({"state": {}, "param_groups": [{"params": []}], "x": print}, place / "optimizer.pt")
    assert score(folder) == 2
    assert "code objects" in capsys.readouterr().err
