"""Layouts of checkpoints: every known one loads exactly the weights, a near miss is refused."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import pathlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evalkit.checkpoints import load_into, open_trajectory, read_tensors, verify_trajectory
from tests.support.folders import model, refused, save, sentence, values

STATE = model(3).state_dict()
OTHER = model(4).state_dict()


def under(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-a-checkpoint",)


LAYOUTS: dict[str, Any] = {
    "Lightning, net": {"state_dict": under("net.")},
    "any one prefix": under("lit.wrapped.inner."),
    "weighted loss": {"state_dict": {**under("model."), "criterion.weight": torch.ones(2)}},
    "metrics": {
        "state_dict": {**under("net."), "val_acc.total": torch.ones(2), "auroc.x": STATE["0.bias"]}
    },
    "average beside": {"state_dict": {**under("model."), **under("ema_model.", OTHER)}},
    "average first": {"state_dict": {**under("ema.module.", OTHER), **under("model.")}},
    "no prefix, loss beside": {**STATE, "loss_fn.pos_weight": torch.ones(2)},
    "AveragedModel": {"n_averaged": torch.tensor(3), **under("module.")},
    "averages alone": {"state_dict_ema": STATE, "epoch": 3},
    "timm": {"state_dict": STATE, "state_dict_ema": OTHER, "arch": "resnet"},
    "basicsr": {"params": STATE, "params_ema": OTHER},
    "DeepSpeed": {"module": STATE, "buffer_names": [], "ds_version": "0.16"},
    "compiled": under("_orig_mod."),
    "compiled inside": {n.replace("0.", "0._orig_mod.", 1): v for n, v in STATE.items()},
    "checkpointed and FSDP": {
        "_fsdp_wrapped_module." + n.replace("2.", "2._checkpoint_wrapped_module.", 1): v
        for n, v in STATE.items()
    },
    "data parallel inside": {n.replace("2.", "2.module.", 1): v for n, v in STATE.items()},
    "Lightning, compiled": {"state_dict": under("net._orig_mod.")},
    "net": {"net": STATE, "epoch": 3},
    "model_state": {"model_state": STATE},
    "weights": {"weights": STATE, "best": 0.5},
    "nested": {"model": {"state_dict": STATE}, "epoch": 1},
    "twice the same": {"model": STATE, "net": dict(STATE)},
    "one unknown key": {"my_weights": STATE, "optimizer": {"state": {}, "param_groups": []}},
    "objects beside": {
        "model": STATE,
        "args": argparse.Namespace(lr=np.float32(0.1), out=pathlib.PurePosixPath("x")),
        "best": np.float64(0.5),
        "order": np.arange(3),
        "random": np.random.RandomState(0).get_state(),
        "generator": np.random.default_rng(0),
        "counts": collections.defaultdict(int, a=1),
        "when": datetime.datetime(2024, 5, 1, 12),
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("suffix", [".ckpt", ".pth.tar"])
@pytest.mark.filterwarnings("ignore:evalkit")
def test_a_layout_loads_exactly_the_weights(tmp_path: Path, name: str, suffix: str) -> None:
    save(tmp_path / f"step-1{suffix}", LAYOUTS[name])
    target = model()
    (checkpoint,) = open_trajectory(tmp_path).checkpoints
    assert checkpoint.name == "step-1"
    load_into(target, checkpoint)
    assert torch.equal(values(target), values(model(3)))


NEAR_MISSES: dict[str, tuple[Any, str]] = {
    "two copies": ({**under("a."), **under("b.", OTHER)}, "2 copies under 'a', 'b'"),
    "a head beside": ({**under("enc."), "head.weight": torch.ones(2)}, "them under 'enc' beside 1"),
    "a longer model": ({**STATE, "4.weight": torch.ones(2)}, "unexpected 1 ('4.weight')"),
    "one name less": (dict(list(under("net.").items())[1:]), "missing 1 ('0.weight')"),
    "another shape": ({**under("net."), "net.0.bias": torch.ones(4)}, "expected shape (3,)"),
    "another shape beside a loss": (
        {**under("net."), "net.0.bias": torch.ones(4), "criterion.weight": torch.ones(2)},
        "missing 4",
    ),
    "two state dicts": ({"model": STATE, "net": OTHER}, "found 'model', 'net'; pass the `key` of"),
    "two unknown ones": ({"gen": STATE, "dis": OTHER}, "found 'gen', 'dis'; pass the `key` of"),
    "two become one": ({**STATE, "0._orig_mod.weight": OTHER["0.weight"]}, "unexpected 1"),
    "code beside": ({"model": STATE, "extra": Malicious()}, "code objects (posix.mkdir)"),
    "code in the arguments": (
        {"model": STATE, "args": argparse.Namespace(x=Malicious())},
        "code objects (posix.mkdir)",
    ),
    "a number of numpy as a tensor": (
        {**STATE, "0.bias": np.float64(1)},
        "an object under '0.bias'",
    ),
    "complex": ({**STATE, "0.bias": torch.ones(3, dtype=torch.complex64)}, "found torch.complex64"),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, expected = NEAR_MISSES[name]
    save(tmp_path / "run" / "step-1.pt", content)
    assert expected in refused(tmp_path / "run")
    assert not Path("made-by-a-checkpoint").exists()


def test_one_layer_of_a_larger_model_is_not_the_model(tmp_path: Path) -> None:
    larger = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    save(tmp_path / "step-1.pt", larger.state_dict())
    trajectory = open_trajectory(tmp_path)
    text = sentence(lambda: verify_trajectory(trajectory, nn.Linear(2, 2)))
    assert "them under '0' beside 2 ('1.weight', '1.bias')" in text
    assert "`key=0`" in text
    target = nn.Linear(2, 2)
    load_into(target, open_trajectory(tmp_path, key="0").checkpoints[0])
    assert torch.equal(values(target), values(larger[0]))


@pytest.mark.parametrize(
    ("content", "key", "seed"),
    [
        ({"state_dict": STATE, "state_dict_ema": OTHER}, "state_dict_ema", 4),
        ({"state_dict": {**under("model."), **under("ema.", OTHER)}}, "ema", 4),
        ({"state_dict": {**under("model."), **under("ema.", OTHER)}}, "state_dict", 3),
        ({"gen": STATE, "dis": OTHER}, "dis", 4),
        ({"nets": {"a": STATE, "b": OTHER}}, "nets.b", 4),
        ({**under("a."), **under("b.", OTHER)}, "b", 4),
        ({**under("a."), **under("b.", OTHER)}, "a.", 3),
    ],
)
@pytest.mark.filterwarnings("ignore:evalkit")
def test_a_key_chooses(tmp_path: Path, content: Any, key: str, seed: int) -> None:
    save(tmp_path / "step-1.pt", content)
    target = model()
    (checkpoint,) = open_trajectory(tmp_path, key=key).checkpoints
    load_into(target, checkpoint)
    assert torch.equal(values(target), values(model(seed)))
    assert checkpoint.key == key
    missing = open_trajectory(tmp_path, key="nothing").checkpoints[0]
    assert "expected weights under 'nothing'" in sentence(lambda: read_tensors(missing))


def test_a_choice_is_told(tmp_path: Path) -> None:
    save(tmp_path / "step-1.pt", {"state_dict": STATE, "state_dict_ema": OTHER})
    with pytest.warns(
        UserWarning, match="'state_dict' are scored, not those under 'state_dict_ema'"
    ):
        verify_trajectory(open_trajectory(tmp_path), model())
    save(tmp_path / "step-1.pt", {**under("model."), **under("ema_model.", OTHER)})
    with pytest.warns(UserWarning, match=r"under 'model' are scored; left out: 4 \('ema_model"):
        verify_trajectory(open_trajectory(tmp_path), model())
    save(tmp_path / "step-1.pt", STATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verify_trajectory(open_trajectory(tmp_path), model())


class Keeper(nn.Linear):
    """Keeps something beside its tensors."""

    scale = 1.0

    def get_extra_state(self) -> dict[str, float]:
        return {"scale": self.scale}

    def set_extra_state(self, state: Any) -> None:
        if state["scale"] < 0:
            raise RuntimeError("no negative scale")
        self.scale = state["scale"]


def test_what_modules_keep_beside_their_tensors(tmp_path: Path) -> None:
    source, target = Keeper(2, 2), Keeper(2, 2)
    source.scale = 3.0
    path = save(tmp_path / "step-1.pt", {"state_dict": under("net.", source.state_dict())})
    load_into(target, open_trajectory(tmp_path).checkpoints[0])
    assert target.scale == 3.0
    assert torch.equal(target.weight, source.weight)
    save(path, {**source.state_dict(), "_extra_state": {"scale": -1.0}})
    before = target.weight.clone()
    checkpoint = open_trajectory(tmp_path).checkpoints[0]
    assert "no negative scale" in sentence(lambda: load_into(target, checkpoint))
    assert torch.equal(target.weight, before)
    assert target.scale == 3.0
    tensors = {n: v for n, v in source.state_dict().items() if isinstance(v, Tensor)}
    path.unlink()
    save(tmp_path / "step-1.safetensors", tensors)
    trajectory = open_trajectory(tmp_path)
    text = sentence(lambda: verify_trajectory(trajectory, target))
    assert "beside its tensors" in text
    assert "missing 1 ('_extra_state')" in text


class Masked(nn.Module):
    """Makes a mask by itself, as GPT-2 does; earlier versions saved it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.weight = nn.Parameter(torch.randn(2, 2))
        mask = torch.ones(3, 3, dtype=torch.bool).tril().view(1, 1, 3, 3)
        self.attn.register_buffer("bias", mask, persistent=False)


def test_constants_that_earlier_versions_saved(tmp_path: Path) -> None:
    source = Masked()
    old = {
        **source.state_dict(),
        "attn.bias": torch.ones(1, 1, 3, 3).tril(),
        "attn.masked_bias": torch.tensor(-1e4),
    }
    path = save(tmp_path / "step-1.bin", old)
    target = Masked()
    with pytest.warns(UserWarning, match="left out: 2"):
        verify_trajectory(open_trajectory(tmp_path), target)
    load_into(target, open_trajectory(tmp_path).checkpoints[0])
    assert torch.equal(target.attn.weight, source.attn.weight)
    save(path, {**old, "attn.bias": torch.randn(2)})
    trajectory = open_trajectory(tmp_path)
    assert "unexpected" in sentence(lambda: verify_trajectory(trajectory, target))


def test_the_mask_of_a_model_that_makes_none(tmp_path: Path) -> None:
    old = {**under("net."), "net.attn.bias": torch.ones(1, 1, 3, 3, dtype=torch.uint8).tril()}
    save(tmp_path / "step-1.pt", old)
    target = model()
    load_into(target, open_trajectory(tmp_path).checkpoints[0])
    assert torch.equal(values(target), values(model(3)))
    save(tmp_path / "step-1.pt", {**old, "net.attn.bias": torch.ones(1, 1, 3, 3)})
    assert "'net.attn.bias') that no part of the model explains" in refused(tmp_path)


def test_checkpoints_of_different_layouts_are_told(tmp_path: Path) -> None:
    """One checkpoint of a run holds averages only: their scores are of another kind."""
    for step in (1, 2):
        save(tmp_path / f"step-{step}.pt", {"state_dict": STATE, "state_dict_ema": OTHER})
    save(tmp_path / "step-3.pt", {"state_dict_ema": OTHER})
    with pytest.warns(UserWarning, match="evalkit") as told:
        verify_trajectory(open_trajectory(tmp_path), model())
    said = [str(one.message) for one in told]
    assert ["step-1.pt" in said[0], "step-3.pt' are averages" in said[1], len(said)] == [1, 1, 2]


def test_whole_numbers_beyond_the_range_of_a_buffer(tmp_path: Path) -> None:
    target = nn.Module()
    target.register_buffer("count", torch.zeros(1, dtype=torch.uint8))
    save(tmp_path / "step-1.pt", {"count": torch.tensor([300])})
    trajectory = open_trajectory(tmp_path)
    assert "beyond its range" in sentence(lambda: verify_trajectory(trajectory, target))


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
