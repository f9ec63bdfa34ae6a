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
from evalkit.storage.history import read_history
from evalkit.tasks import Recipe, Task
from evalkit.training import optimizers, train
from evalkit.training.saved_optimizers import restored
from tests.support.refusals import refusal
from tests.support.trainings import INPUTS, LABELS, STEPS, Traps, interrupted, small_task


class Noisy(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Draws from the ambient generators of numpy, Python and torch, as augmentations do."""

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = np.random.rand() + random.random() + float(torch.rand(()))  # noqa: NPY002
        return INPUTS[index] + 0.1 * noise, int(LABELS[index])


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
