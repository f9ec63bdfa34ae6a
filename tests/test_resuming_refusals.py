"""What a training that goes on refuses: other settings, data and versions, and damaged files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evalkit.checkpoints import open_trajectory
from evalkit.checkpoints.manifest import UNFINISHED_NAME
from evalkit.storage.history import HISTORY_FILE, read_history
from evalkit.storage.rows import TrainingStep
from evalkit.training import optimizers, train
from evalkit.training.registry import REGISTRY
from tests.support.refusals import refusal
from tests.support.trainings import INPUTS, LABELS, interrupted, small_task
from tests.support.unlisted import unlist_states


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
        ("device", "cuda", "expected `device` of kind cuda"),
        ("versions", {**content["versions"], "torch": "1.0"}, "expected torch 1.0"),
    ):
        path.write_text(json.dumps({**content, key: value}))
        assert expected in refusal(lambda: train(small_task(), folder=tmp_path, resume=True))
    versions = {**content["versions"], "python": "3.10"}
    del content["device"]  # as of trainings that could be on a CPU only
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


def of_another_step_unlisted(path: Path) -> None:
    of_another_step(path)
    unlist_states(path.parent)


def of_another_optimizer_unlisted(path: Path) -> None:
    of_another_optimizer(path)
    unlist_states(path.parent)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("step-000006.optimizer.pt", damage, "is truncated, altered or of another format"),
        ("step-000006.optimizer.pt", Path.unlink, "step-000006.optimizer.pt', found none"),
        ("step-000006.optimizer.pt", of_another_step, "which the training saved with that"),
        ("step-000006.optimizer.pt", of_another_step_unlisted, "found that of step 0; copy"),
        ("step-000006.optimizer.pt", without_a_part, "found one without order"),
        ("step-000006.optimizer.pt", of_another_optimizer_unlisted, "found ValueError"),
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
