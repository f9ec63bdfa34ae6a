"""Checkpoint files: every format is read and fitted to the model; bad ones change nothing."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evalkit.checkpoints import (
    load_into,
    open_trajectory,
    read_tensors,
    verify,
    verify_trajectory,
)
from evalkit.checkpoints.tensors import SUFFIXES, write_tensor_file
from tests.support.folders import model, refused, save, sentence, values


class Malicious:
    """Unpickled without care, this creates a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


FORMS = [(".safetensors", None)] + [
    (suffix, key)
    for suffix in SUFFIXES
    if suffix != ".safetensors"
    for key in (None, "state_dict", "model", "model_state_dict")
]


@pytest.mark.parametrize(("suffix", "key"), FORMS)
def test_every_format_without_a_manifest(tmp_path: Path, suffix: str, key: str | None) -> None:
    for step in (2, 10, 0):
        state = model(step).state_dict()
        save(tmp_path / f"step-{step}{suffix}", state if key is None else {key: state, "epoch": 3})
    trajectory = open_trajectory(tmp_path)
    assert [c.name for c in trajectory.checkpoints] == ["step-0", "step-2", "step-10"]
    assert [c.step for c in trajectory.checkpoints] == [0, 2, 10]
    assert [c.progress for c in trajectory.checkpoints] == [0.0, 0.2, 1.0]
    assert trajectory.task is None
    assert trajectory.manifest is None
    target = model(99)
    verify_trajectory(trajectory, target)
    assert torch.equal(values(target), values(model(99)))
    for checkpoint in trajectory.checkpoints:
        load_into(target, checkpoint)
        assert torch.equal(values(target), values(model(checkpoint.step)))


def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    state = {f"model.{name}": value for name, value in model(3).state_dict().items()}
    optimizer_state = {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1}]}
    content = {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": collections.OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer_state],
        "lr_schedulers": [],
        "hyper_parameters": {"learning_rate": 0.1},
    }
    save(tmp_path / "epoch=3-step=1200-v1.ckpt", content)
    (checkpoint,) = open_trajectory(tmp_path).checkpoints
    assert checkpoint.step == 1200
    target = model()
    load_into(target, checkpoint)
    assert torch.equal(values(target), values(model(3)))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"step-1{suffix}", model().state_dict())
    whole = path.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:size])
        text = refused(tmp_path)
        assert str(path) in text
        assert "truncated, altered or of another format; copy" in text


def test_truncated_older_pickle(tmp_path: Path) -> None:
    path = tmp_path / "step-1.pt"
    torch.save(model().state_dict(), path, _use_new_zipfile_serialization=False)
    verify_trajectory(open_trajectory(tmp_path), model())
    whole = path.read_bytes()
    for size in (30, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:size])
        assert "truncated, altered or of another format" in refused(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_nan_and_infinity(tmp_path: Path, suffix: str) -> None:
    state = model().state_dict()
    state["2.weight"][0, :2] = torch.nan
    state["2.weight"][1, 0] = -torch.inf
    path = save(tmp_path / f"step-1{suffix}", state)
    assert f"'2.weight' of '{path}', found 2 NaN and 1 Inf" in refused(tmp_path)


def test_shapes_and_kinds_of_numbers(tmp_path: Path) -> None:
    state = model().state_dict()
    path = save(tmp_path / "step-1.pt", {**state, "0.bias": torch.zeros(4)})
    text = refused(tmp_path)
    assert f"expected shape (3,) for tensor '0.bias' in '{path}', found (4,)" in text
    assert "pass the task" in text
    save(path, {**state, "0.bias": torch.zeros(3, dtype=torch.int64)})
    assert "expected torch.float32 for tensor '0.bias'" in refused(tmp_path)


def test_missing_and_unexpected_tensors(tmp_path: Path) -> None:
    state = model().state_dict()
    path = save(tmp_path / "step-1.pt", {"0.weight": state["0.weight"], "head": torch.ones(2)})
    text = refused(tmp_path)
    assert str(path) in text
    assert "missing 3 ('0.bias', '2.weight', '2.bias')" in text
    assert "unexpected 1 ('head')" in text
    save(path, {**state, **{f"extra{index}": torch.ones(1) for index in range(7)}})
    assert "unexpected 7 ('extra0', 'extra1', 'extra2', 'extra3', 'extra4' and 2 more)" in refused(
        tmp_path
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model._orig_mod."])
def test_prefixes_of_wrappers(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in model(3).state_dict().items()}
    path = save(tmp_path / "step-1.safetensors", state)
    target = model()
    load_into(target, open_trajectory(tmp_path).checkpoints[0])
    assert torch.equal(values(target), values(model(3)))
    # One name less is one name missing, not all of them.
    state.pop(f"{prefix}0.bias")
    save(path, state)
    assert "found missing 1 ('0.bias'); pass" in refused(tmp_path)


def test_a_prefix_that_is_part_of_the_model_stays(tmp_path: Path) -> None:
    wrapped = nn.ModuleDict({"model": model(3)})
    save(tmp_path / "step-1.safetensors", wrapped.state_dict())
    target = nn.ModuleDict({"model": model()})
    load_into(target, open_trajectory(tmp_path).checkpoints[0])
    assert torch.equal(values(target), values(wrapped))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("saved_once", [True, False])
def test_tied_weights(tmp_path: Path, saved_once: bool) -> None:
    source, target = Tied(), Tied()
    state = source.state_dict()
    if saved_once:
        state.pop("head.weight")
    write_tensor_file(tmp_path / "step-1.safetensors", state)
    load_into(target, open_trajectory(tmp_path).checkpoints[0])
    assert torch.equal(values(target), values(source))
    assert target.head.weight is target.embedding.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in model(3).state_dict().items()}
    save(tmp_path / "step-1.safetensors", state)
    (checkpoint,) = open_trajectory(tmp_path).checkpoints
    assert {tensor.dtype for tensor in read_tensors(checkpoint).values()} == {dtype}
    target = model()
    load_into(target, checkpoint)
    assert values(target).dtype == torch.float32
    assert torch.equal(values(target), values(model(3)).to(dtype).float())


def test_a_refused_checkpoint_changes_nothing(tmp_path: Path) -> None:
    state = model(3).state_dict()
    state["2.bias"][0] = torch.nan
    save(tmp_path / "step-1.pt", state)
    target = model()
    said = sentence(lambda: load_into(target, open_trajectory(tmp_path).checkpoints[0]))
    assert "2.bias" in said
    assert torch.equal(values(target), values(model()))


@pytest.mark.parametrize("writer", ["torch", "torch older", "pickle", "pickle protocol 2"])
def test_a_pickle_that_needs_code(
    tmp_path: Path, writer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    content = {**model().state_dict(), "extra": Malicious(marker)}
    path = tmp_path / "folder" / "step-1.pt"
    path.parent.mkdir()
    if writer.startswith("torch"):
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    else:
        protocol = 2 if writer.endswith("2") else None
        path.write_bytes(pickle.dumps(Malicious(marker), protocol=protocol))
    text = refused(path.parent)
    assert not marker.exists()
    assert str(path) in text
    assert "code objects (posix.mkdir)" in text or "code objects (nt.mkdir)" in text
    assert "save model.state_dict() or a safetensors file" in text
    assert "weights_only" not in text
    assert capfd.readouterr().err == ""
    # The same bytes do run code when they are loaded without care.
    torch.load(path, weights_only=False) if writer.startswith("torch") else pickle.loads(
        path.read_bytes()
    )
    assert marker.exists()


def test_a_whole_module_is_code(tmp_path: Path) -> None:
    save(tmp_path / "step-1.pt", model())
    assert "code objects (torch.nn.modules.container.Sequential)" in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([torch.ones(2)], "found list"),
        (torch.ones(2), "found Tensor"),
        ({}, "found an empty dict"),
        ({"epoch": 3, "history": {"a": 0.5}}, "found int under 'epoch'"),
        ({"a": torch.eye(3).to_sparse()}, "a tensor that is not dense under 'a'"),
    ],
)
def test_content_that_is_no_state_dict(tmp_path: Path, content: Any, expected: str) -> None:
    path = save(tmp_path / "step-1.pt", content)
    text = refused(tmp_path)
    assert expected in text
    assert str(path) in text
    assert "save model.state_dict()" in text


def test_other_files_under_a_known_ending(tmp_path: Path) -> None:
    for name in ("step-1.pt", "step-1.safetensors"):
        path = tmp_path / name
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
        assert "of another format" in refused(tmp_path)
        path.unlink()


def test_verify_leaves_the_model_alone(tmp_path: Path) -> None:
    save(tmp_path / "step-1.pt", model(3).state_dict())
    target = model()
    verify(open_trajectory(tmp_path).checkpoints[0], target)
    assert torch.equal(values(target), values(model()))
