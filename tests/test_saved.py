"""Checkpoints in folders: as transformers, its Trainer and PEFT write them, and damaged ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from evalkit.checkpoints import (
    load_into,
    open_trajectory,
    read_tensors,
    trajectory_task,
    verify_trajectory,
)
from evalkit.checkpoints.manifest import MANIFEST_NAME
from evalkit.checkpoints.saved import find_saved, read_saved, saved_hash
from evalkit.checkpoints.tensors import file_hash
from evalkit.tasks import Task, families, register_family
from tests.support.adapters import bert, data, lora, save_adapter, t5, train_with_trainer, vit
from tests.support.folders import model, refused, save, sentence, values

INDEX = "model.safetensors.index.json"


def folder_of(path: Path, seed: int = 0, file: str = "model.safetensors", **state: Any) -> Path:
    """Save a small model in a folder, with what the Trainer wrote beside it."""
    save(path / file, model(seed).state_dict())
    if state:
        (path / "trainer_state.json").write_text(json.dumps(state))
    return path


def sharded(folder: Path) -> Path:
    bert().save_pretrained(folder, max_shard_size="6KB")
    return folder / INDEX


def test_folders_named_by_their_step(tmp_path: Path) -> None:
    for step, file in ((32, "model.safetensors"), (8, "pytorch_model.bin")):
        folder_of(tmp_path / f"step-{step:06d}", step, file)
    (tmp_path / ".step-9").mkdir()
    (tmp_path / "logs").mkdir()
    trajectory = open_trajectory(tmp_path)
    assert [c.name for c in trajectory.checkpoints] == ["step-000008", "step-000032"]
    assert [c.step for c in trajectory.checkpoints] == [8, 32]
    assert [c.progress for c in trajectory.checkpoints] == [0.25, 1.0]
    assert not trajectory.is_adapter
    assert trajectory.base_model is None
    target = model(99)
    verify_trajectory(trajectory, target)
    load_into(target, trajectory.checkpoints[1])
    assert torch.equal(values(target), values(model(32)))


def test_a_trainer_folder_ignores_the_files_beside_its_checkpoints(tmp_path: Path) -> None:
    for step in (1000, 500):
        folder_of(tmp_path / f"checkpoint-{step}", step, global_step=step, max_steps=2000, epoch=1)
    folder_of(tmp_path, 1)
    save(tmp_path / "training_args.bin", {"lr": 0.1})
    save(tmp_path / "other.pt", model().state_dict())
    trajectory = open_trajectory(tmp_path)
    assert [c.name for c in trajectory.checkpoints] == ["checkpoint-500", "checkpoint-1000"]
    assert [c.progress for c in trajectory.checkpoints] == [0.25, 0.5]
    assert [c.epoch for c in trajectory.checkpoints] == [1, 1]


@pytest.mark.parametrize("total", [0, -1, 3, None])
def test_a_number_of_steps_that_the_trainer_did_not_know(tmp_path: Path, total: int | None) -> None:
    for step in (2, 4):
        folder_of(tmp_path / f"checkpoint-{step}", global_step=step, max_steps=total, epoch=0.5)
    checkpoints = open_trajectory(tmp_path).checkpoints
    assert [(c.progress, c.epoch) for c in checkpoints] == [(0.5, None), (1.0, None)]


def test_a_run_of_the_trainer(tmp_path: Path) -> None:
    trained = train_with_trainer(bert(), tmp_path)
    trajectory = open_trajectory(tmp_path)
    assert [c.name for c in trajectory.checkpoints] == ["checkpoint-2", "checkpoint-4"]
    assert [c.progress for c in trajectory.checkpoints] == [0.5, 1.0]
    assert trajectory.base_model == str(tmp_path / "checkpoint-2")
    target = bert()
    verify_trajectory(trajectory, target)
    load_into(target, trajectory.checkpoints[1])
    assert torch.equal(values(target), values(trained))


@pytest.mark.parametrize("build", [bert, t5, vit])
def test_shards_as_transformers_saves_them(tmp_path: Path, build: Callable[[], nn.Module]) -> None:
    """T5 ties weights that are saved once; ViT is saved under names of an earlier version."""
    saved = build()
    saved.save_pretrained(tmp_path / "step-3", max_shard_size="6KB")
    assert len(find_saved(tmp_path / "step-3").weights) > 2
    trajectory = open_trajectory(tmp_path)
    target = build()
    state = torch.random.get_rng_state()
    load_into(target, trajectory.checkpoints[0])
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(values(target), values(saved))
    assert "expected the tensors of the model" in refused(tmp_path)


def test_names_of_another_version_do_not_hide_what_is_missing(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["other"] = tensors.pop("classifier.bias")
    save(path, tensors)
    text = sentence(lambda: verify_trajectory(open_trajectory(tmp_path), vit()))
    assert "missing 1 ('classifier.bias') and unexpected 1 ('other')" in text


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (lambda shards: {name: f"../{shard}" for name, shard in shards.items()}, "beside"),
        (lambda shards: dict.fromkeys(shards, "/etc/passwd.bin"), "'/etc/passwd.bin'"),
        (lambda shards: dict.fromkeys(shards, "C:x.safetensors"), "'C:x.safetensors'"),
        (lambda shards: dict.fromkeys(shards, 3), "found 3"),
        (lambda shards: dict.fromkeys(shards, "config.json"), "found 'config.json'"),
        (lambda shards: {}, "a 'weight_map' from tensors to files"),
        (lambda shards: None, "found None"),
        (lambda shards: {**shards, "x": "model-9.safetensors"}, "shard 'model-9.safetensors'"),
        (lambda shards: {**shards, "x": next(iter(shards.values()))}, "expected tensor 'x' in"),
        (lambda shards: dict(list(shards.items())[1:]), "missing 1"),
    ],
)
def test_tampered_indices(tmp_path: Path, tamper: Callable[[Any], Any], expected: str) -> None:
    index = sharded(tmp_path)
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "weight_map": tamper(content["weight_map"])}))
    text = sentence(lambda: verify_trajectory(open_trajectory(tmp_path), bert()))
    assert expected in text
    assert str(tmp_path) in text


def test_an_index_that_is_no_json(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    index.write_text("{")
    assert f"expected JSON in '{index}'" in sentence(lambda: open_trajectory(tmp_path))


def test_a_hash_covers_every_file_that_counts(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    index = sharded(folder)
    saved = find_saved(folder)
    files = sorted([*saved.weights, index])
    lines = "".join(f"{path.name} {file_hash(path)}\n" for path in files)
    assert saved_hash(saved) == hashlib.sha256(lines.encode()).hexdigest()
    (folder / "notes.txt").write_text("anything")
    assert saved_hash(find_saved(folder)) == saved_hash(saved)
    trajectory = open_trajectory(tmp_path)
    save(saved.weights[0], {name: t + 1 for name, t in read_saved(saved).items()})
    text = sentence(lambda: read_tensors(trajectory.checkpoints[0]))
    assert f"'{folder}'" in text
    assert "SHA-256" in text


def test_one_file_keeps_its_hash(tmp_path: Path) -> None:
    path = save(tmp_path / "step-1.pt", model().state_dict())
    assert open_trajectory(tmp_path).checkpoints[0].sha256 == file_hash(path)


def test_a_folder_that_is_one_checkpoint(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "my-model-2024")
    save(folder / "optimizer.pt", {"state": {}})
    (checkpoint,) = open_trajectory(folder).checkpoints
    assert (checkpoint.name, checkpoint.step, checkpoint.progress) == ("my-model-2024", 0, 1.0)
    folder = folder_of(tmp_path / "checkpoint-5", global_step=5, max_steps=20, epoch=2.0)
    (checkpoint,) = open_trajectory(folder).checkpoints
    assert (checkpoint.name, checkpoint.step, checkpoint.progress) == ("checkpoint-5", 5, 0.25)
    assert checkpoint.epoch == 2
    (folder / "trainer_state.json").unlink()
    (checkpoint,) = open_trajectory(folder).checkpoints
    assert (checkpoint.step, checkpoint.progress) == (5, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "expected JSON"),
        ("[]", "a JSON object"),
        ("{}", "as 'global_step'"),
        ('{"global_step": -1}', "as 'global_step'"),
        ('{"global_step": true}', "as 'global_step'"),
        ('{"global_step": 1e400}', "as 'global_step'"),
        (f'{{"global_step": {2**63}}}', "as 'global_step'"),
        ('{"global_step": 2, "max_steps": "4"}', "as 'max_steps'"),
        ('{"global_step": 2, "max_steps": 4, "epoch": NaN}', "as 'epoch'"),
        ('{"global_step": 2, "max_steps": 4, "epoch": "1"}', "as 'epoch'"),
    ],
)
def test_a_damaged_trainer_state(tmp_path: Path, text: str, expected: str) -> None:
    path = folder_of(tmp_path / "checkpoint-2") / "trainer_state.json"
    path.write_text(text)
    found = sentence(lambda: open_trajectory(tmp_path))
    assert expected in found
    assert f"'{path}'" in found


def test_folders_without_an_order_and_with_nothing_in_them(tmp_path: Path) -> None:
    folder_of(tmp_path / "step-1")
    folder_of(tmp_path / "weights")
    assert "'weights' without one; rename them, as in 'step-100'" in refused(tmp_path)
    (tmp_path / "weights").rename(tmp_path / "step-01")
    assert "found 'step-01' and 'step-1'; remove or rename one" in refused(tmp_path)
    shutil.rmtree(tmp_path / "step-01")
    (tmp_path / "checkpoint-7").mkdir()
    assert f"a saved model or adapter in '{tmp_path / 'checkpoint-7'}'" in refused(tmp_path)


def test_files_mixed_with_folders(tmp_path: Path) -> None:
    save(tmp_path / "step-1.pt", model().state_dict())
    folder_of(tmp_path / "best")
    assert [c.name for c in open_trajectory(tmp_path).checkpoints] == ["step-1"]
    folder_of(tmp_path / "step-2")
    text = refused(tmp_path)
    assert "all files or all folders, found 'step-1.pt' and 'step-2'" in text


def test_a_file_beside_a_model_is_not_passed_over(tmp_path: Path) -> None:
    folder_of(tmp_path)
    save(tmp_path / "step-3.pt", model().state_dict())
    assert "'model' without one" in refused(tmp_path)


def test_whole_models_mixed_with_adapters(tmp_path: Path) -> None:
    folder_of(tmp_path / "step-1")
    save_adapter(tmp_path / "step-2", lora())
    text = sentence(lambda: open_trajectory(tmp_path))
    assert "'step-2' is an adapter, 'step-1' a whole model" in text


def test_a_manifest_that_lists_folders(tmp_path: Path) -> None:
    entries = []
    for step in (0, 8):
        folder = folder_of(tmp_path / f"step-{step:06d}", step)
        digest = saved_hash(find_saved(folder))
        entries.append({"file": folder.name, "step": step, "progress": step / 8, "sha256": digest})
    content = {"format": 1, "task": "digits-mlp", "settings": {"n": 3}, "checkpoints": entries}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    trajectory = open_trajectory(tmp_path)
    assert [c.name for c in trajectory.checkpoints] == ["step-000000", "step-000008"]
    assert trajectory.settings == {"n": 3}
    verify_trajectory(trajectory, model())
    save(tmp_path / "step-000008" / "model.safetensors", model(1).state_dict())
    assert "SHA-256" in sentence(lambda: open_trajectory(tmp_path))
    entries[1]["file"] = "gone"
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    assert "expected the checkpoint 'gone'" in sentence(lambda: open_trajectory(tmp_path))


@pytest.mark.parametrize("file", ["..", ".", "", "/etc", "C:\\Windows", "a/../../b", "step-1/."])
def test_a_manifest_never_leaves_its_folder(tmp_path: Path, file: str) -> None:
    folder_of(tmp_path / "in" / "step-1")
    entry = {"file": file, "step": 1, "progress": 1.0}
    content = {"format": 1, "checkpoints": [entry]}
    (tmp_path / "in" / MANIFEST_NAME).write_text(json.dumps(content))
    if file == "step-1/.":  # names the folder itself
        assert open_trajectory(tmp_path / "in").checkpoints[0].name == "step-1"
    else:
        assert "inside the folder" in sentence(lambda: open_trajectory(tmp_path / "in"))


@pytest.mark.parametrize(
    "settings", [[], "model", {"a": None}, {"a": [1]}, {"a": float("nan")}, None]
)
def test_wrong_settings_in_a_manifest(tmp_path: Path, settings: Any) -> None:
    folder_of(tmp_path / "step-1")
    entry = {"file": "step-1", "step": 1, "progress": 1.0}
    content = {"format": 1, "settings": settings, "checkpoints": [entry]}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    assert "as settings of" in sentence(lambda: open_trajectory(tmp_path))


def test_settings_of_a_family_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model goes first, then the manifest's settings, then the caller's."""
    registry = families._REGISTRY
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    def family(model: str = "none", size: int = 1, other: int = 0) -> Task:
        return Task(model=bert, data=data)

    register_family("settings-of-a-trajectory", family)
    save_adapter(tmp_path / "step-1", lora())
    config = tmp_path / "step-1" / "adapter_config.json"
    content = {**json.loads(config.read_text()), "base_model_name_or_path": "some/base"}
    config.write_text(json.dumps(content))
    trajectory = open_trajectory(tmp_path)
    assert trajectory.base_model == "some/base"
    made = trajectory_task(trajectory, "settings-of-a-trajectory", {"size": 2})
    assert made.settings == {"model": "some/base", "size": 2, "other": 0}
    entry = {"file": "step-1", "step": 1, "progress": 1.0}
    manifest = {"format": 1, "task": "settings-of-a-trajectory", "checkpoints": [entry]}
    manifest["settings"] = {"model": "listed", "size": 3, "other": 4}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest))
    trajectory = open_trajectory(tmp_path)
    made = trajectory_task(trajectory, settings={"size": 5})
    assert made.settings == {"model": "listed", "size": 5, "other": 4}
    assert trajectory_task(trajectory, "digits-mlp").settings == {}
