"""What checkpoints hold beside weights: extra state of modules, masks, counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evalkit.checkpoints import load_into, open_trajectory, verify_trajectory
from tests.support.folders import model, refused, save, sentence, under, values


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


def test_whole_numbers_beyond_the_range_of_a_buffer(tmp_path: Path) -> None:
    target = nn.Module()
    target.register_buffer("count", torch.zeros(1, dtype=torch.uint8))
    save(tmp_path / "step-1.pt", {"count": torch.tensor([300])})
    trajectory = open_trajectory(tmp_path)
    assert "beyond its range" in sentence(lambda: verify_trajectory(trajectory, target))
