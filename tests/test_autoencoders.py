"""The autoencoders: pictures in [0, 1] as inputs and soft targets, and what their settings do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from evalkit.errors import EvalkitError
from evalkit.tasks import load_task
from tests.support import hub
from tests.support.idx import save_idx


def widths(model: nn.Module) -> list[int]:
    return [layer.in_features for layer in model.children() if isinstance(layer, nn.Linear)]


def test_digits_are_their_own_targets() -> None:
    task = load_task("autoencoder-digits")
    samples, validation = task.training_samples(), task.validation_samples()
    assert validation is not None
    assert (len(samples), len(validation)) == (1437, 360)
    inputs, targets = samples.take(slice(5))
    assert isinstance(inputs, torch.Tensor)
    assert torch.equal(inputs, targets)
    assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)
    model = task.build_model(0)
    assert widths(model) == [64, 32, 16, 8, 16, 32]
    assert model(inputs).shape == (5, 64)
    # The last layer gives logits: ReLU, as behind all others, would leave out half of them.
    assert float(model(inputs).detach().min()) < 0
    narrow = load_task("autoencoder-digits", {"widths": "9-3"}).build_model(0)
    assert widths(narrow) == [64, 9, 3, 9]


def test_fashion_mnist_at_two_sizes(tmp_path: Path) -> None:
    pictures = hub.pixels(12, 28, 28)
    for part in ("train", "t10k"):
        save_idx(tmp_path, part, pictures, torch.zeros(12, dtype=torch.uint8).numpy())
    task = load_task("autoencoder-fashion-mnist", {"data": str(tmp_path)})
    hidden = [400, 200, 100, 50, 25]
    assert widths(task.build_model(0)) == [784, *hidden, 6, *hidden[::-1]]
    inputs, targets = task.training_samples().take(slice(3))
    assert inputs is targets
    levels = torch.tensor(pictures[:3]).reshape(3, 784) / 255
    assert torch.allclose(targets, levels, atol=1e-6)
    settings = {"data": str(tmp_path), "size": "14", "widths": "5", "samples": "4"}
    small = load_task("autoencoder-fashion-mnist", settings)
    assert len(small.training_samples()) == 4
    settings["samples"] = "0"
    _, targets = load_task("autoencoder-fashion-mnist", settings).training_samples().take(slice(3))
    squares = torch.tensor(pictures[:3] / 255).view(3, 14, 2, 14, 2).mean((2, 4))
    assert torch.allclose(targets.double(), squares.flatten(1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("widths", "32,16", "found '32,16'"),
        ("widths", "32--8", "found '32--8'"),
        ("widths", "", "found ''"),
        ("widths", "8-0", "found 0"),
        ("size", "13", "found 13"),
        ("size", "0", "found 0"),
    ],
)
def test_settings_that_make_no_autoencoder(name: str, value: str, found: str) -> None:
    with pytest.raises(EvalkitError) as caught:
        load_task("autoencoder-fashion-mnist", {name: value})
    assert found in str(caught.value)
    assert name in str(caught.value)
    assert "correct that code" not in str(caught.value)
