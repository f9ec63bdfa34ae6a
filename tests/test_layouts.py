"""Layouts of checkpoints: every known one loads exactly the weights, a near miss is refused."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evalkit.checkpoints import load_into, open_trajectory, read_tensors, verify_trajectory
from tests.support.folders import STATE, model, refused, save, sentence, under, values

OTHER = model(4).state_dict()


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


def test_checkpoints_of_different_layouts_are_told(tmp_path: Path) -> None:
    """One checkpoint of a run holds averages only: their scores are of another kind."""
    for step in (1, 2):
        save(tmp_path / f"step-{step}.pt", {"state_dict": STATE, "state_dict_ema": OTHER})
    save(tmp_path / "step-3.pt", {"state_dict_ema": OTHER})
    with pytest.warns(UserWarning, match="evalkit") as told:
        verify_trajectory(open_trajectory(tmp_path), model())
    said = [str(one.message) for one in told]
    assert ["step-1.pt" in said[0], "step-3.pt' are averages" in said[1], len(said)] == [1, 1, 2]
