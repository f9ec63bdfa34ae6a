"""The wide perceptrons, on pictures of the hub and on Fashion-MNIST's own files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evalkit.tasks import Samples, load_task
from tests.support import hub
from tests.support.folders import sentence
from tests.support.idx import save_idx


def test_the_wide_perceptron_takes_pixels_in_a_row(own_data_cache: None, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    pictures = hub.pixels(3, 32, 32, 3)
    pictures[0], pictures[1] = 0, 255
    hub.save_pictures(tmp_path, pictures)
    task = load_task("mlp-cifar10", {"data": str(tmp_path)})
    inputs, targets = task.training_samples().take(slice(3))
    assert isinstance(inputs, torch.Tensor)
    assert inputs.shape == (3, 3 * 32 * 32)
    assert inputs[0].unique().tolist() == [-1.0]
    assert inputs[1].unique().tolist() == [1.0]
    red = pictures[2, :, :, 0].reshape(-1) / 127.5 - 1
    assert inputs[2, : 32 * 32].numpy() == pytest.approx(red, abs=1e-6)
    assert targets.tolist() == [0, 1, 2]
    one = load_task("mlp-cifar10", {"data": str(tmp_path), "validation_samples": 1})
    every = load_task("mlp-cifar10", {"data": str(tmp_path), "validation_samples": 0})
    counts = [len(task.validation_samples() or ()) for task in (one, every)]
    assert counts[0] == 1 < counts[1]


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    for part, count in (("train", 12), ("t10k", 5)):
        labels = np.arange(count, dtype=np.uint8) % 10
        save_idx(tmp_path, part, hub.pixels(count, 28, 28), labels)
    return tmp_path


def test_fashion_mnist_from_its_files(fashion: Path) -> None:
    task = load_task("mlp-fashion-mnist", {"data": str(fashion)})
    samples, validation = task.training_samples(), task.validation_samples()
    assert isinstance(samples.inputs, torch.Tensor)
    assert np.array_equal(samples.inputs.numpy(), hub.pixels(12, 28, 28))
    assert samples.targets.tolist() == [i % 10 for i in range(12)]
    assert validation is not None
    assert len(validation) == 5
    inputs, targets = samples.take(slice(2))
    assert isinstance(inputs, torch.Tensor)
    logits = task.build_model(0)(inputs)
    assert logits.shape == (2, 10)
    assert math.isfinite(float(nn.functional.cross_entropy(logits, targets).detach()))
    some = load_task("mlp-fashion-mnist", {"data": str(fashion), "samples": 5}).training_samples()
    kept, whole = (pairs(part) for part in (some, samples))
    assert len(kept) == 5
    assert kept < whole


def test_small_perceptrons_on_small_pictures(fashion: Path) -> None:
    settings = {"data": str(fashion), "widths": "32-16-8", "size": 14}
    task = load_task("mlp-fashion-mnist", settings)
    model = task.build_model(0)
    shapes = [tuple(weight.shape) for weight in model.parameters() if weight.dim() == 2]
    assert shapes == [(32, 196), (16, 32), (8, 16), (10, 8)]
    inputs, _ = task.training_samples().take(slice(2))
    assert isinstance(inputs, torch.Tensor)
    squares = hub.pixels(12, 28, 28)[:2].reshape(2, 14, 2, 14, 2).mean((2, 4)) / 127.5 - 1
    assert inputs.numpy() == pytest.approx(squares.reshape(2, 196), abs=1e-6)
    for wrong, words in (({"size": 13}, "divide 28"), ({"widths": "9-x"}, "as in 32-16-8")):
        assert words in sentence(lambda wrong=wrong: load_task("mlp-fashion-mnist", wrong))


def pairs(samples: Samples) -> set[tuple[bytes, int]]:
    """The pictures with their labels."""
    assert isinstance(samples.inputs, torch.Tensor)
    pictures = [picture.numpy().tobytes() for picture in samples.inputs]
    return set(zip(pictures, samples.targets.tolist(), strict=True))


def test_a_broken_file_of_fashion_mnist(fashion: Path) -> None:
    task = load_task("mlp-fashion-mnist", {"data": str(fashion)})
    path = fashion / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 64])
    for content in (whole[:-20], b"text", flipped + whole[middle + 64 :]):
        path.write_bytes(content)
        text = sentence(task.training_samples)
        assert str(path) in text
        assert "correct that code" not in text
    path.write_bytes((fashion / "train-labels-idx1-ubyte.gz").read_bytes())
    assert "the number 2051" in sentence(task.training_samples)
    path.unlink()
    assert "{'data': DIR}" in sentence(task.training_samples)
