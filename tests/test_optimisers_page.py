"""The examples of the pages on optimisers run, and do what the pages say of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

from tests.support.documents import document, python_blocks


def test_the_examples_run() -> None:
    torch.manual_seed(0)
    blocks = [block.text for block in python_blocks(document("guides/train-with-ief.md"))]
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    exec(blocks[0], names)
    before = [p.detach().clone() for p in names["model"].parameters()]
    first = float(names["loss"])
    exec(blocks[1], names)
    moved = [
        not torch.equal(a, b) for a, b in zip(before, names["model"].parameters(), strict=True)
    ]
    assert all(moved)
    (scored,) = python_blocks(document("guides/optimiser-step.md"))
    exec(scored.text, names)
    assert list(names["table"]["method"]) == ["sgd", "ief", "optimizer"]
    for _ in range(5):
        names["optimizer"].step(lambda: (names["model"](names["inputs"]), names["targets"]))
    last = names["optimizer"].step(lambda: (names["model"](names["inputs"]), names["targets"]))
    assert float(last) < 0.5 * first


def test_the_weights_are_those_of_the_optimiser() -> None:
    from evalkit.optim import IEF, WeightedLoss

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    model = model.double()
    inputs, targets = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    weighted = WeightedLoss(model, "ief", damping=1e-3)
    weighted(model(inputs), targets).backward()
    weighted.close()
    before = [p.detach().clone() for p in model.parameters()]
    IEF(model.parameters(), lr=1.0, damping=1e-3).step(lambda: (model(inputs), targets))
    for old, parameter in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(old - parameter.detach(), parameter.grad)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_the_room_is_at_hand_with_the_package() -> None:
    code = "import evalkit; assert 'torch' not in __import__('sys').modules; evalkit.optim.IEF"
    subprocess.run([sys.executable, "-c", code], check=True)
