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
from evalkit.checkpoints.optimizer_files import read_optimizer
from evalkit.storage.history import HISTORY_FILE, read_history
from evalkit.storage.rows import TrainingStep
from evalkit.tasks import Recipe, Task
from evalkit.training import optimizers, train
from evalkit.training.registry import REGISTRY
from evalkit.training.saved_optimizers import restored
from tests.support.refusals import refusal
from tests.support.trainings import INPUTS, LABELS, STEPS, Traps, small_task


class Noisy(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Draws from the ambient generators of numpy, Python and torch, as augmentations do."""

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = np.random.rand() + random.random() + float(torch.rand(()))  # noqa: NPY002
        return INPUTS[index] + 0.1 * noise, int(LABELS[index])


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
        if not name.endswith("README.md"):  # PEFT writes one in no fixed order
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adam": {},
    "sgd": {"momentum": 0.9, "schedule": "step:at=0.5"},
    "muon": {"schedule": "cosine"},
    "adafactor": {"schedule": "linear"},
    "ief": {"learning_rate": 2.0, "momentum": 0.5, "damping": 1e-6, "weight_decay": 0.01},
    "ef": {"learning_rate": 0.1, "normalise": True, "schedule": "linear"},
    "sf": {"learning_rate": 0.1, "normalise": True, "seed": 2},
    "fgn": {"learning_rate": 1.0, "on_failure": "skip"},
    "polyak": {"learning_rate": 1.0},
    "kfac:labels=improved": {"learning_rate": 0.1, "damping": 1e-2},
    "ngd": {"learning_rate": 0.1, "damping": 1e-2},
}


@pytest.mark.filterwarnings("ignore:samples influence each other")  # by batch statistics
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_interrupted_training_ends_as_one_that_is_not(tmp_path: Path, name: str) -> None:
    settings = {"optimizer": name, **OPTIMIZERS[name]}
    # Methods by layers are for samples that do not influence each other.
    task = small_task(model=lambda: Traps(norm=not name.startswith("kfac")))
    train(task, folder=tmp_path / "whole", **settings)
    interrupted(tmp_path / "torn", 2 * STEPS + 2, task, **settings)
    torch.rand(3)  # the ambient generators have no say
    train(task, folder=tmp_path / "torn", resume=True, **settings)
    assert_same(tmp_path / "torn", tmp_path / "whole")


def test_every_optimizer_is_resumed_in_a_test() -> None:
    assert set(OPTIMIZERS) >= set(optimizers.names())


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

    They are taken before each file takes its place, beside which it lies, after every step, and at
    the end.
    """
    taken: list[Path] = []
    replace = os.replace

    def take() -> None:
        taken.append(folder.with_name(f"killed-{len(taken)}"))
        shutil.copytree(folder, taken[-1])

    def replaced(source: Any, target: Any) -> None:
        take()
        replace(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    train(task, folder=folder, on_step=lambda row: take())
    monkeypatch.undo()
    take()
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
    assert check_snapshots(monkeypatch, task, tmp_path) == 1 + 3 * 3 + 6 + 2


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
    assert check_snapshots(monkeypatch, task, tmp_path) == 1 + 2 * 3 + 2 + 2
    whole = tmp_path / "whole"
    assert (whole / "step-000002" / "adapter_config.json").is_file()
    state = torch.load(whole / "step-000002.optimizer.pt", weights_only=True)
    assert all("lora" in name or "classifier" in name for name in state["names"][0])


def test_a_disk_that_is_full_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small_task(recipe=Recipe(epochs=1, batch_size=5))
    train(task, folder=tmp_path / "whole")
    replace, kept = os.replace, []
    for number in range(8):
        left = iter(range(number))

        def full(source: Any, target: Any, left: Any = left) -> None:
            if next(left, None) is None:
                raise OSError(28, "No space left on device")
            replace(source, target)

        folder = tmp_path / f"full-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            text = refusal(lambda f=folder: train(task, folder=f))
        assert "found: No space left on device" in text
        kept.append(folder.exists())
        train(task, folder=folder, resume=True)
        assert_same(folder, tmp_path / "whole")
    # The first file, the model, its state and what lists both: only then is there a checkpoint.
    assert kept == [False] * 4 + [True] * 4


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
    saved = read_optimizer(open_trajectory(tmp_path).checkpoints[1])
    loaded = restored(saved, model)
    assert isinstance(loaded, torch.optim.SGD)
    assert loaded.param_groups[0]["lr"] == 0.025
    assert loaded.param_groups[0]["momentum"] == 0.9
    other = nn.Linear(4, 3)
    assert "found that of other parameters" in refusal(lambda: restored(saved, other))


def test_an_interruption_before_the_first_checkpoint_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evalkit.training.states.write_state", fail)
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
        ({"learning_rate": 0.1}, "expected `learning_rate` of 0.05, with which the training in"),
        ({"epochs": 5}, "expected `epochs` of 4, with which the training in"),
        ({"optimizer": "adam"}, "expected `optimizer` of adamw, with which the training in"),
        ({"schedule": "linear"}, "began, found linear; give the same, or choose another `folder`"),
        ({"seed": 1}, "expected `seed` of 0"),
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
    twice = small_task(data=lambda: (INPUTS.repeat(2, 1), LABELS.repeat(2)))
    text = refusal(lambda: train(twice, folder=tmp_path, resume=True))
    assert "found 24, which are not 6 steps in 2 epochs; train with the same data" in text


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
        ("step-000006.optimizer.pt", of_another_step, "found that of step 0; copy"),
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

    monkeypatch.setattr(REGISTRY, "_entries", dict(REGISTRY._entries))
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
    assert "expected `epochs` of 4" in text
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    text = refusal(lambda: train(small_task(), folder=tmp_path / "full", resume=True))
    assert "expected the folder of a training at" in text


def test_one_checkpoint_of_an_unfinished_training_knows_its_place(tmp_path: Path) -> None:
    interrupted(tmp_path, 7)
    (checkpoint,) = open_trajectory(tmp_path / "step-000006.safetensors").checkpoints
    assert (checkpoint.step, checkpoint.progress, checkpoint.epoch) == (6, 0.5, 2)
