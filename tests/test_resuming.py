"""A training that is interrupted, wherever, and goes on: the files are those of one that is not."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evalkit.checkpoints import open_trajectory
from evalkit.checkpoints.manifest import MANIFEST_NAME, UNFINISHED_NAME
from evalkit.cli import main
from evalkit.storage.history import HISTORY_FILE, read_history
from evalkit.storage.rows import TrainingStep
from evalkit.tasks import Recipe, Task
from evalkit.training import Epoch, optimizers, train
from tests.support.refusals import refusal

INPUTS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
LABELS = INPUTS[:, :3].argmax(1)
STEPS = 3  # in an epoch


class Traps(nn.Module):
    """Has dropout, batch statistics, and a buffer that is not saved and changes as it trains."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.dropout, self.last = nn.Dropout(0.3), nn.Linear(6, 3)
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.register_buffer("fixed", torch.ones(2), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.count += 1
        hidden = self.dropout(torch.tanh(self.norm(self.first(inputs))))
        return self.last(hidden) * (1 + self.count / 100)


class Noisy(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Draws from the ambient generators of numpy, Python and torch, as augmentations do."""

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = np.random.rand() + random.random() + float(torch.rand(()))  # noqa: NPY002
        return INPUTS[index] + 0.1 * noise, int(LABELS[index])


def small_task(**changes: Any) -> Task:
    recipe = Recipe(learning_rate=0.05, epochs=4, batch_size=5, checkpoint_every=2)
    settings: dict[str, Any] = {
        "model": Traps,
        "data": lambda: (INPUTS, LABELS),
        "validation": lambda: (INPUTS[:7], LABELS[:7]),
        "recipe": recipe,
        "name": "small",
    }
    return Task(**{**settings, **changes})


class Stopped(Exception):
    pass


def stop_after(number: int) -> Any:
    """Return what interrupts a training after so many of its steps."""

    def stop(row: TrainingStep) -> None:
        if row.step == number:
            raise Stopped

    return stop


def interrupted(folder: Path, step: int, task: Task | None = None, **settings: Any) -> None:
    """Train until a step, no further."""
    with pytest.raises(Stopped):
        train(task or small_task(), folder=folder, on_step=stop_after(step), **settings)


def assert_same(folder: Path, other: Path) -> None:
    """Check that two trainings wrote the same files, to the last bit of what they hold."""
    names = sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file())
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == names
    for name in names:
        if name.endswith(".pt"):
            ours, theirs = (torch.load(one / name, weights_only=True) for one in (folder, other))
            assert alike(ours, theirs), name
        elif not name.endswith("README.md"):  # PEFT writes one in no fixed order
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adam": {},
    "sgd": {"momentum": 0.9, "schedule": "step:at=0.5"},
    "muon": {"schedule": "cosine"},
    "adafactor": {"schedule": "linear"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_interrupted_training_ends_as_one_that_is_not(tmp_path: Path, name: str) -> None:
    settings = {"optimizer": name, **OPTIMIZERS[name]}
    train(small_task(), folder=tmp_path / "whole", **settings)
    interrupted(tmp_path / "torn", 2 * STEPS + 2, **settings)
    torch.rand(3)  # the ambient generators have no say
    train(small_task(), folder=tmp_path / "torn", resume=True, **settings)
    assert_same(tmp_path / "torn", tmp_path / "whole")


def test_every_optimizer_is_resumed_in_a_test() -> None:
    assert set(OPTIMIZERS) == set(optimizers.names())


def test_data_that_draw_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    task = small_task(data=Noisy())
    before = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    train(task, folder=tmp_path / "whole")
    interrupted(tmp_path / "torn", 3 * STEPS, task)
    train(task, folder=tmp_path / "torn", resume=True)
    assert_same(tmp_path / "torn", tmp_path / "whole")
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index] # noqa: NPY002


def snapshots(monkeypatch: pytest.MonkeyPatch, task: Task, folder: Path) -> list[Path]:
    """Train, and return copies of the folder as a process that is killed would leave it.

    They are taken around each file that is written, with half of it beside its place, and after
    every step.
    """
    taken: list[Path] = []
    replace = os.replace

    def take() -> None:
        taken.append(folder.with_name(f"killed-{len(taken)}"))
        shutil.copytree(folder, taken[-1])

    def replaced(source: Any, target: Any) -> None:
        take()
        replace(source, target)
        take()

    monkeypatch.setattr(os, "replace", replaced)
    train(task, folder=folder, on_step=lambda row: take())
    monkeypatch.undo()
    return taken


def check_snapshots(monkeypatch: pytest.MonkeyPatch, task: Task, tmp_path: Path) -> int:
    taken = snapshots(monkeypatch, task, tmp_path / "whole")
    finished = 0
    for folder in taken:
        if (folder / MANIFEST_NAME).exists():
            finished += 1
        elif any(folder.glob("[!.]*")):
            assert "expected a finished training" in refusal(lambda f=folder: open_trajectory(f))
            expected = "found a training that was interrupted; pass `resume` to go on with it"
            assert expected in refusal(lambda f=folder: train(task, folder=f))
        train(task, folder=folder, resume=True)
        assert_same(folder, tmp_path / "whole")
        shutil.rmtree(folder)
    assert finished == 1
    return len(taken)


def test_a_killed_training_goes_on_wherever_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small_task(recipe=Recipe(epochs=2, batch_size=5, checkpoint_every=1))
    assert check_snapshots(monkeypatch, task, tmp_path) > 2 * (3 * 3 + 1)


def test_a_killed_training_of_an_adapter_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from tests.support.adapters import adapted, bert, data, lora

    task = Task(
        model=lambda: adapted(bert(), lora(lora_dropout=0.2)),
        base=bert,
        data=data,
        recipe=Recipe(epochs=1, batch_size=6, checkpoint_every=1),
        name="adapted",
    )
    assert check_snapshots(monkeypatch, task, tmp_path) > 2 * (3 * 2 + 1)
    whole = tmp_path / "whole"
    assert (whole / "step-000002" / "adapter_config.json").is_file()
    state = torch.load(whole / "step-000002.optimizer.pt", weights_only=True)
    assert all("lora" in name or "classifier" in name for name in state["names"][0])


def test_what_lies_beside_a_checkpoint(tmp_path: Path) -> None:
    train(small_task(), folder=tmp_path, optimizer="sgd", momentum=0.9, schedule="linear", seed=3)
    manifest = json.loads((tmp_path / MANIFEST_NAME).read_text())
    assert [entry["optimizer"] for entry in manifest["checkpoints"]] == [
        f"step-{step:06d}.optimizer.pt" for step in (0, 6, 12)
    ]
    state = torch.load(tmp_path / "step-000006.optimizer.pt", weights_only=True)
    assert state["optimizer"] == "sgd"
    assert state["settings"] == {"learning_rate": 0.05, "weight_decay": 0.01, "momentum": 0.9}
    assert state["names"] == [[name for name, _ in Traps().named_parameters()]]
    assert state["step"] == 6
    assert set(state["buffers"]) == {"count"}
    # It is a state of torch's own optimizer, which goes on from there.
    model = Traps()
    own = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    own.load_state_dict(state["state_dict"])
    assert own.param_groups[0]["lr"] == 0.025
    assert len(own.state) == len(state["names"][0])


def test_muon_has_the_hidden_matrices_and_adamw_the_rest(tmp_path: Path) -> None:
    train(small_task(), folder=tmp_path, optimizer="muon")
    state = torch.load(tmp_path / "step-000012.optimizer.pt", weights_only=True)
    matrices, others = state["names"]
    assert matrices == ["first.weight"]
    assert others == ["first.bias", "norm.weight", "norm.bias", "last.weight", "last.bias"]
    assert state["settings"]["momentum"] == 0.95
    narrow = small_task(model=lambda: nn.Linear(4, 3))
    said = refusal(lambda: train(narrow, folder=tmp_path / "new", optimizer="muon"))
    assert "expected trainable matrices of hidden layers in Linear" in said
    assert not (tmp_path / "new").exists()


def test_the_history_has_a_row_for_each_step(tmp_path: Path) -> None:
    rows: list[TrainingStep] = []
    epochs: list[Epoch] = []
    train(
        small_task(),
        folder=tmp_path,
        schedule="step:at=0.5:factor=0.1",
        on_step=rows.append,
        on_epoch=epochs.append,
    )
    table = read_history(tmp_path)
    assert list(table.columns) == ["step", "epoch", "progress", "loss", "learning_rate", "skipped"]
    assert table["step"].tolist() == list(range(1, 13))
    assert table["epoch"].tolist() == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert table["progress"].tolist() == [step / 12 for step in range(1, 13)]
    assert table["learning_rate"].tolist() == [0.05] * 6 + [0.1 * 0.05] * 6
    assert table["skipped"].tolist() == [0] * 12
    assert [row.loss for row in rows] == table["loss"].tolist()
    for epoch in epochs:
        sizes, losses = [5, 5, 2], table["loss"][table["epoch"] == epoch.number]
        mean = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / 12
        assert epoch.loss == pytest.approx(mean)


def test_an_interruption_before_the_first_checkpoint_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evalkit.training.saving.write_state", fail)
    for folder in (tmp_path / "deep" / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(KeyboardInterrupt):
            train(small_task(), folder=folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_loss_that_diverges_keeps_what_was_reached(tmp_path: Path) -> None:
    task = small_task(data=lambda: (INPUTS, INPUTS[:, :3]), validation=None, likelihood="gaussian")
    settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1e20, "folder": tmp_path}
    text = refusal(lambda: train(task, **settings))
    assert "expected a finite loss while training task 'small'" in text
    assert "lower the learning rate (1e+20)" in text
    assert (tmp_path / UNFINISHED_NAME).is_file()
    assert len(read_history(tmp_path)) > 0
    assert refusal(lambda: train(task, resume=True, **settings)) == text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learning_rate": 0.1}, "expected learning_rate 0.05, with which the training in"),
        ({"epochs": 5}, "expected epochs 4, with which the training in"),
        ({"optimizer": "adam"}, "expected optimizer adamw, with which the training in"),
        ({"schedule": "linear"}, "began, found linear; give the same, or choose another `folder`"),
        ({"seed": 1}, "expected seed 0"),
        ({"task": small_task(name="other")}, "expected task small"),
        ({"task": small_task(model=lambda: nn.Linear(4, 3))}, "expected parameters 63"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changes: dict, expected: str) -> None:
    task = changes.pop("task", small_task())
    interrupted(tmp_path, 7)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert expected in refusal(lambda: train(task, folder=tmp_path, resume=True, **changes))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_versions_and_threads_are_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, 7)
    path = tmp_path / UNFINISHED_NAME
    content = json.loads(path.read_text())
    for key, value, expected in (
        ("threads", 99, "expected threads 99"),
        ("versions", {**content["versions"], "torch": "1.0"}, "expected torch 1.0"),
    ):
        path.write_text(json.dumps({**content, key: value}))
        assert expected in refusal(lambda: train(small_task(), folder=tmp_path, resume=True))
    versions = {**content["versions"], "python": "3.10"}
    path.write_text(json.dumps({**content, "versions": versions}))
    train(small_task(), folder=tmp_path, resume=True)


def test_other_data_are_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, 7)
    other = small_task(data=lambda: (INPUTS + 1, LABELS))
    text = refusal(lambda: train(other, folder=tmp_path, resume=True))
    assert "expected the training loss" in text
    assert "train with the data and the model that it began with" in text


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def of_another_step(path: Path) -> None:
    shutil.copy(path.with_name("step-000000.optimizer.pt"), path)


def without_a_part(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    del state["order"]
    torch.save(state, path)


def of_another_optimizer(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["state_dict"] = {"state": {}, "param_groups": []}
    torch.save(state, path)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("step-000006.optimizer.pt", damage, "is truncated, altered or of another format"),
        ("step-000006.optimizer.pt", Path.unlink, "step-000006.optimizer.pt', found none"),
        ("step-000006.optimizer.pt", of_another_step, "found the state of another step"),
        ("step-000006.optimizer.pt", without_a_part, "found one without order"),
        ("step-000006.optimizer.pt", of_another_optimizer, "found ValueError"),
        ("step-000006.safetensors", damage, "truncated or altered"),
        (HISTORY_FILE, lambda path: path.write_text("step\n1\n"), "found 1; copy the file again"),
        (HISTORY_FILE, Path.unlink, "expected the 6 steps of the training so far"),
        (UNFINISHED_NAME, damage, "expected JSON"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, change: Any, expected: str) -> None:
    interrupted(tmp_path, 7)
    change(tmp_path / name)
    assert expected in refusal(lambda: train(small_task(), folder=tmp_path, resume=True))


def test_code_in_a_state_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "marker"),)

    interrupted(tmp_path / "torn", 7)
    torch.save({"step": Evil()}, tmp_path / "torn" / "step-000006.optimizer.pt")
    text = refusal(lambda: train(small_task(), folder=tmp_path / "torn", resume=True))
    assert "truncated, altered or of another format" in text
    assert not (tmp_path / "marker").exists()


def test_a_state_with_objects_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "path": Path("x")}

    monkeypatch.setattr(optimizers._REGISTRY, "_entries", dict(optimizers._REGISTRY._entries))
    optimizers.optimizer("odd")(lambda parameters, rate, decay: Odd(parameters, lr=rate))
    text = refusal(lambda: train(small_task(), folder=tmp_path / "new", optimizer="odd"))
    assert "in the state of the optimizer 'odd', found pathlib" in text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_trained_in_once_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    task, found = small_task(), []

    def other(row: TrainingStep) -> None:
        if row.step == 7:
            found.append(refusal(lambda: train(task, folder=tmp_path, resume=True)))

    train(task, folder=tmp_path, on_step=other)
    assert "expected no other training in" in found[0]
    assert len(read_history(tmp_path)) == 12


def test_resuming_where_nothing_is_left_to_do_or_nothing_began(tmp_path: Path) -> None:
    train(small_task(), folder=tmp_path / "new", resume=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "new").iterdir()}
    trajectory = train(small_task(), folder=tmp_path / "new", resume=True)
    assert len(trajectory.checkpoints) == 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "new").iterdir()} == before
    text = refusal(lambda: train(small_task(), folder=tmp_path / "new", epochs=9, resume=True))
    assert "expected epochs 4" in text
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    text = refusal(lambda: train(small_task(), folder=tmp_path / "full", resume=True))
    assert "expected the folder of a training at" in text


def test_one_checkpoint_of_an_unfinished_training_knows_its_place(tmp_path: Path) -> None:
    interrupted(tmp_path, 7)
    (checkpoint,) = open_trajectory(tmp_path / "step-000006.safetensors").checkpoints
    assert (checkpoint.step, checkpoint.progress, checkpoint.epoch) == (6, 0.5, 2)


def test_the_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = tmp_path / "mine.py", tmp_path / "out"
    file.write_text(
        "import torch, evalkit\n"
        "task = evalkit.Task(\n"
        "    model=lambda: torch.nn.Linear(3, 2),\n"
        "    data=lambda: (torch.eye(3).repeat(4, 1), torch.arange(12) % 2),\n"
        "    recipe=evalkit.tasks.Recipe(epochs=2, batch_size=4, checkpoint_every=1),\n"
        ")\n"
    )
    given = [
        "train",
        f"{file}:task",
        "--out",
        str(folder),
        "--optimizer",
        "sgd",
        "--momentum",
        "0.9",
    ]
    finish = "evalkit.training.folders.finish"

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish, interrupt)
        assert main(given) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert main(given) == 2
    assert "pass --resume to go on with it" in capsys.readouterr().err
    assert main(["score", str(folder), "--task", f"{file}:task"]) == 2
    assert "with --resume" in capsys.readouterr().err
    assert main([*given, "--learning-rate", "0.5", "--resume"]) == 2
    assert "expected learning_rate 0.001" in capsys.readouterr().err
    assert main([*given, "--resume"]) == 0
    assert "3 checkpoints in" in capsys.readouterr().out
    assert (folder / MANIFEST_NAME).is_file()


def test_the_list_has_optimizers_and_schedules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in ("muon", "adafactor", "cosine", "step"):
        assert f"\n  {name} " in shown
