"""Folders of checkpoints: single files, optimizers beside models, sharded weights, odd names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evalkit.checkpoints import load_into, open_trajectory, verify_trajectory
from tests.support.folders import STATE, model, save, sentence, values

OTHER = model(4).state_dict()


def test_a_single_file(tmp_path: Path) -> None:
    path = save(tmp_path / "my-model.pth.tar", {"state_dict": STATE})
    save(tmp_path / "step-7.pt", OTHER)
    trajectory = open_trajectory(path)
    (checkpoint,) = trajectory.checkpoints
    assert (checkpoint.name, checkpoint.step, checkpoint.progress) == ("my-model", 0, 1.0)
    assert trajectory.folder == tmp_path
    target = model()
    load_into(target, checkpoint)
    assert torch.equal(values(target), values(model(3)))
    (checkpoint,) = open_trajectory(tmp_path / "step-7.pt").checkpoints
    assert (checkpoint.step, checkpoint.progress) == (7, 1.0)
    assert "found nothing there" in sentence(lambda: open_trajectory(tmp_path / "gone.pt"))


def test_an_optimizer_beside_a_model(tmp_path: Path) -> None:
    save(tmp_path / "model.pt", STATE)
    save(tmp_path / "optimizer.pt", {"state": {}, "param_groups": []})
    (checkpoint,) = open_trajectory(tmp_path).checkpoints
    target = model()
    load_into(target, checkpoint)
    assert torch.equal(values(target), values(model(3)))
    for step in (1, 2):
        save(tmp_path / "run" / f"step-{step}" / "model.pt", model(step).state_dict())
        save(tmp_path / "run" / f"step-{step}" / "optimizer.pt", {"state": {}})
        save(tmp_path / "flat" / f"model-{step}.pt", model(step).state_dict())
        save(tmp_path / "flat" / f"optimizer-{step}.pt", {"state": {}})
    for name in ("run", "flat"):
        trajectory = open_trajectory(tmp_path / name)
        assert [c.step for c in trajectory.checkpoints] == [1, 2]
        verify_trajectory(trajectory, model())
    assert "optimizer-1.pt, optimizer-2.pt" in trajectory.notes[0]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["checkpoint-1/global_step1/mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
        (["global_step1/mp_rank_00_model_states.pt", "zero_to_fp32.py"], "--tag global_step1"),
        (["step=1.ckpt/checkpoint/zero_pp_rank_0_mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
        (["checkpoint-1/pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
        (["step=1.ckpt/.metadata", "step=1.ckpt/meta.pt"], "consolidate_checkpoint"),
        (["step-1/.metadata", "step-1/__0_0.distcp"], "dcp_to_torch"),
        (["checkpoint-1/pytorch_model_fsdp_rank0.bin"], "FULL_STATE_DICT"),
    ],
)
def test_sharded_folders(tmp_path: Path, files: list[str], expected: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    for folder in (tmp_path, (tmp_path / files[0]).parent):
        if folder == tmp_path or "global_step" not in str(folder):
            text = sentence(lambda folder=folder: open_trajectory(folder))
            assert expected in text
            assert "sharded weights" in text


def test_a_whole_model_beside_parts_counts(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    save(folder / "model.safetensors", STATE)
    (folder / "global_step1").mkdir()
    (folder / "global_step1" / "mp_rank_00_model_states.pt").touch()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1, "max_steps": 2}))
    verify_trajectory(open_trajectory(tmp_path), model())


def pipe(path: Path) -> None:
    os.mkfifo(path)


def broken_link(path: Path) -> None:
    path.symlink_to(path.parent / "gone")


@pytest.mark.parametrize(
    ("make", "expected"),
    [(pipe, "a named pipe"), (broken_link, "a link to a file")],
)
@pytest.mark.parametrize("name", ["step-2.pt", "trajectory.json", "trainer_state.json"])
def test_what_is_no_file(
    tmp_path: Path, name: str, make: Callable[[Path], None], expected: str
) -> None:
    save(tmp_path / "step-1.pt", STATE)
    folder = tmp_path
    if name == "trainer_state.json":
        folder = tmp_path / "checkpoint-1"
        save(folder / "model.safetensors", STATE)
    make(folder / name)
    text = sentence(lambda: open_trajectory(tmp_path))
    assert expected in text
    assert str(folder / name) in text


@pytest.mark.parametrize("name", [b"step-\xff1.pt", b"step-1\n.pt", b"\x1bstep-1.pt"])
def test_names_that_no_table_can_hold(tmp_path: Path, name: bytes) -> None:
    file = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(file)).touch()
    text = sentence(lambda: open_trajectory(tmp_path))
    assert "a name in UTF-8 without control characters" in text
    text.encode("utf-8")
