"""Trajectories: folders open in order of training, and unusable ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evalkit.checkpoints import (
    Trajectory,
    open_trajectory,
    trajectory_task,
    verify_trajectory,
)
from evalkit.checkpoints.manifest import MANIFEST_NAME
from tests.support.folders import model, refused, save, sentence, with_manifest

BUNDLED = Path(__file__).parents[1] / "checkpoints" / "digits-mlp"


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["step-10", "step-2"], ["step-2", "step-10"]),
        (["run3_100", "run3_20"], ["run3_20", "run3_100"]),
        (
            ["epoch=02-loss=0.95", "epoch=10-loss=0.12"],
            ["epoch=02-loss=0.95", "epoch=10-loss=0.12"],
        ),
        (["step=20-v1", "step=3"], ["step=3", "step=20-v1"]),
    ],
)
def test_order_by_file_names(tmp_path: Path, names: list[str], ordered: list[str]) -> None:
    for name in names:
        save(tmp_path / f"{name}.pt", model().state_dict())
    checkpoints = open_trajectory(tmp_path).checkpoints
    assert [c.name for c in checkpoints] == ordered
    assert checkpoints[-1].progress == 1.0
    assert [c.progress for c in checkpoints] == sorted({c.progress for c in checkpoints})


def test_mixed_formats_and_other_files(tmp_path: Path) -> None:
    save(tmp_path / "step-0.safetensors", model().state_dict())
    save(tmp_path / "step-4.pth", model().state_dict())
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    assert [c.progress for c in open_trajectory(tmp_path).checkpoints] == [0.0, 1.0]


def test_a_lone_initialised_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "step-0.pt", model().state_dict())
    assert [c.progress for c in open_trajectory(tmp_path).checkpoints] == [0.0]


def test_names_without_an_order(tmp_path: Path) -> None:
    save(tmp_path / "step-1.pt", model().state_dict())
    save(tmp_path / "weights.pt", model().state_dict())
    assert "found 'weights' without one; rename them" in refused(tmp_path)
    (tmp_path / "weights.pt").rename(tmp_path / "step-01.pt")
    assert "found 'step-01' and 'step-1'; remove or rename one" in refused(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    save(tmp_path / "final.pt", model().state_dict())
    save(tmp_path / "final.bin", model().state_dict())
    assert "found 'final.bin' and 'final.pt'" in refused(tmp_path)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    text = refused(tmp_path / "nothing")
    assert f"'{tmp_path / 'nothing'}', found nothing there" in text
    assert "evalkit train" in text
    (tmp_path / "empty").mkdir()
    assert f"in '{tmp_path / 'empty'}', found none" in refused(tmp_path / "empty")
    file = tmp_path / "file.txt"
    file.write_text("no weights")
    assert f".pth.tar or a folder of checkpoints, found '{file}'" in refused(file)
    with_manifest(tmp_path / "runs" / "first")
    assert f"did you mean '{tmp_path / 'runs' / 'first'}'" in refused(tmp_path / "runs")


def test_a_manifest_is_followed(tmp_path: Path) -> None:
    manifest = with_manifest(tmp_path)
    manifest["checkpoints"] = [
        {**manifest["checkpoints"][2], "epoch": 4, "training_loss": 0.5, "progress": 0.75},
        {**manifest["checkpoints"][0], "validation_accuracy": 0.1},
    ]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest))
    trajectory = open_trajectory(tmp_path)
    first, last = trajectory.checkpoints
    assert (first.step, first.progress, first.epoch, first.validation_accuracy) == (0, 0, None, 0.1)
    assert (last.step, last.progress, last.epoch, last.training_loss) == (10, 0.75, 4, 0.5)
    assert trajectory.task == "digits-mlp"
    assert trajectory.manifest == manifest
    verify_trajectory(trajectory, model())


def test_an_altered_byte(tmp_path: Path) -> None:
    with_manifest(tmp_path)
    path = tmp_path / "step-5.safetensors"
    trajectory = open_trajectory(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    text = refused(tmp_path)
    assert str(path) in text
    assert "SHA-256" in text
    assert "train again" in text
    # A folder that was whole when it was opened is checked again when a file is read.
    assert str(path) in sentence(lambda: verify_trajectory(trajectory, model()))


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", '"text"', "\x00\xff", "[" * 100_000])
def test_manifests_that_are_no_json_object(tmp_path: Path, text: str) -> None:
    with_manifest(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text(text, encoding="latin-1")
    found = refused(tmp_path)
    assert "JSON" in found
    assert str(tmp_path / MANIFEST_NAME) in found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": 2}, "expected 'format': 1"),
        ({"format": None}, "expected 'format': 1"),
        ({"task": 3}, "the name of a task as task"),
        ({"checkpoints": []}, "at least one checkpoint"),
        ({"checkpoints": {}}, "at least one checkpoint"),
        ({"checkpoints": ["step-0.safetensors"]}, "an object as checkpoints[0]"),
    ],
)
def test_wrong_fields_of_a_manifest(tmp_path: Path, changes: dict, expected: str) -> None:
    with_manifest(tmp_path, **changes)
    text = refused(tmp_path)
    assert expected in text
    assert str(tmp_path / MANIFEST_NAME) in text


@pytest.mark.parametrize(
    ("index", "changes", "expected"),
    [
        (0, {"file": "../step-0.safetensors"}, "a file inside the folder"),
        (0, {"file": "..\\step-0.safetensors"}, "a file inside the folder"),
        (0, {"file": "/etc/passwd.pt"}, "a file inside the folder"),
        (0, {"file": "C:\\weights.pt"}, "a file inside the folder"),
        (0, {"file": "step-0.txt"}, "a file inside the folder that ends in .safetensors"),
        (0, {"file": None}, "checkpoints[0].file"),
        (1, {"file": "gone.safetensors"}, "expected the checkpoint 'gone.safetensors'"),
        (1, {"file": "step-0.safetensors", "sha256": None}, "a name of its own"),
        (1, {"step": -1}, "an integer from 0 to 2^63 - 1 as checkpoints[1].step"),
        (1, {"step": True}, "an integer from 0 to 2^63 - 1 as checkpoints[1].step"),
        (1, {"step": 10}, "one checkpoint for each step"),
        (1, {"progress": 1.5}, "a number from 0 to 1 as checkpoints[1].progress"),
        (1, {"progress": float("nan")}, "a number from 0 to 1 as checkpoints[1].progress"),
        (1, {"progress": 0.0}, "expected progress to rise with the step"),
        (1, {"epoch": "one"}, "checkpoints[1].epoch"),
        (1, {"sha256": "abc"}, "64 hexadecimal digits"),
        (1, {"sha256": "0" * 64}, "SHA-256"),
        (1, {"training_loss": float("inf")}, "a finite number"),
        (1, {"validation_accuracy": 97.5}, "checkpoints[1].validation_accuracy"),
        (1, {"sha265": "0" * 64}, "did you mean 'sha256'"),
    ],
)
def test_wrong_fields_of_a_checkpoint(
    tmp_path: Path, index: int, changes: dict, expected: str
) -> None:
    folder = tmp_path / "folder"
    manifest = with_manifest(folder)
    manifest["checkpoints"][index].update(changes)
    save(tmp_path / "step-0.safetensors", model().state_dict())
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    text = refused(folder)
    assert expected in text
    assert str(folder) in text


def test_task_of_a_trajectory(tmp_path: Path) -> None:
    with_manifest(tmp_path)
    trajectory = open_trajectory(tmp_path)
    assert trajectory_task(trajectory).name == "digits-mlp"
    override = "evalkit.tasks.digits_mlp:task"
    assert trajectory_task(Trajectory(tmp_path, (), None), override).name == "digits-mlp"
    text = sentence(lambda: trajectory_task(Trajectory(tmp_path, (), None)))
    assert "pass `task=" in text
    assert str(tmp_path) in text


@pytest.mark.parametrize("by_file", [True, False])
def test_a_manifest_never_names_code_to_run(
    tmp_path: Path, by_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, code = tmp_path / "marker", tmp_path / "module_named_by_data.py"
    code.write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    spec = f"{code}:task" if by_file else "module_named_by_data:task"
    with_manifest(tmp_path / "folder", task=spec)
    trajectory = open_trajectory(tmp_path / "folder")
    assert trajectory.task == spec
    assert f"pass `task={spec}`" in sentence(lambda: trajectory_task(trajectory))
    assert not marker.exists()


def test_the_bundled_trajectory() -> None:
    trajectory = open_trajectory(BUNDLED)
    assert len(trajectory.checkpoints) >= 8
    assert (trajectory.checkpoints[0].step, trajectory.checkpoints[0].progress) == (0, 0.0)
    last = trajectory.checkpoints[-1]
    assert last.progress == 1.0
    assert last.epoch is not None
    assert last.epoch >= 30
    assert last.validation_accuracy is not None
    assert last.validation_accuracy > 0.9
    verify_trajectory(trajectory, trajectory_task(trajectory).build_model(0))
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 3_000_000
