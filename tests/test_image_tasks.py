"""The picture tasks: tensors of pictures, and vision transformers with LoRA."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("datasets")
pytest.importorskip("PIL")

import evalkit
from evalkit import EvalkitError
from evalkit.checkpoints import open_trajectory, trajectory_task
from evalkit.settings import Settings
from evalkit.storage.run_folder import read_run
from evalkit.study.running import run_study
from evalkit.tasks import Task, load_task
from evalkit.training.loop import train
from tests.support import hub

pytestmark = pytest.mark.usefixtures("own_data_cache")

PICTURES = hub.pixels(18, hub.SIDE, hub.SIDE, 3)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.save_pictures(tmp_path_factory.mktemp("cifar"), PICTURES)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {"vit": hub.save_vit(place / "vit"), "dinov2": hub.save_dinov2(place / "dinov2")}


def vision(model: Path, data: Path, name: str = "vit-cifar10", **settings: object) -> Task:
    chosen = {"model": str(model), "data": str(data), "size": hub.SIDE, **settings}
    return load_task(name, chosen)


def trainable(model: nn.Module) -> dict[str, int]:
    return {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}


# --- pictures as tensors -------------------------------------------------------------------------


def test_pictures_are_those_of_the_files(models: dict[str, Path], cifar: Path) -> None:
    task = vision(models["vit"], cifar)
    samples, validation = task.training_samples(), task.validation_samples()
    assert isinstance(samples.inputs, torch.Tensor)
    assert samples.inputs.dtype == torch.uint8
    assert np.array_equal(samples.inputs.permute(0, 2, 3, 1).numpy(), PICTURES)
    assert samples.targets.tolist() == [i % 3 for i in range(18)]
    assert validation is not None
    assert len(validation) == 4
    inputs, _ = samples.take(slice(2))
    assert isinstance(inputs, dict)
    expected = torch.from_numpy(PICTURES[:2]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(inputs["pixel_values"], (expected - 0.5) / 0.5)


def test_pictures_are_resized_and_normalised(models: dict[str, Path], cifar: Path) -> None:
    task = vision(models["vit"], cifar, size=12, mean=0.25, deviation=0.2)
    inputs, _ = task.training_samples().take(slice(4))
    assert isinstance(inputs, dict)
    pixels = inputs["pixel_values"]
    assert pixels.shape == (4, 3, 12, 12)
    assert float(pixels.min()) >= -0.25 / 0.2 - 1e-6
    assert float(pixels.max()) <= 0.75 / 0.2 + 1e-6
    means = torch.from_numpy(PICTURES[:4] / 255).mean(dim=(1, 2))
    torch.testing.assert_close(
        pixels.mean(dim=(2, 3)) * 0.2 + 0.25, means.float(), rtol=0, atol=0.03
    )


def test_grey_pictures_have_three_channels_alike(models: dict[str, Path], tmp_path: Path) -> None:
    grey = hub.pixels(5, hub.SIDE, hub.SIDE)
    data = hub.save_pictures(tmp_path, grey, column="image", labels="fine_label")
    samples = vision(models["vit"], data, "vit-cifar100").training_samples()
    assert isinstance(samples.inputs, torch.Tensor)
    for channel in range(3):
        assert np.array_equal(samples.inputs[:, channel].numpy(), grey)


def test_some_samples_are_drawn_once_and_for_all(models: dict[str, Path], cifar: Path) -> None:
    first, again = (
        vision(models["vit"], cifar, samples=7).training_samples().inputs for _ in range(2)
    )
    assert isinstance(first, torch.Tensor)
    assert torch.equal(first, again)
    known = {picture.tobytes(): i for i, picture in enumerate(PICTURES)}
    drawn = [known[picture.tobytes()] for picture in first.permute(0, 2, 3, 1).numpy()]
    assert len(set(drawn)) == 7
    assert drawn != sorted(drawn)


# --- vision transformers -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_what_is_trained_is_scored_from_disk(
    kind: str, models: dict[str, Path], cifar: Path, tmp_path: Path
) -> None:
    task = vision(models[kind], cifar)
    counts = trainable(task.build_model(0))
    assert all("lora_" in n or "classifier" in n or n.endswith(".base_layer.bias") for n in counts)
    assert sum(n.endswith(".base_layer.bias") for n in counts) == 2
    assert sum("lora_" in n for n in counts) == 4
    folder = tmp_path / "checkpoints"
    train(task, folder=folder, epochs=2, batch_size=6)
    trajectory = open_trajectory(folder)
    assert trajectory.is_adapter
    again = trajectory_task(trajectory)
    assert again.settings == task.settings
    settings = Settings(("sgd", "ef", "ief", "sf"), batches=2, batch_size=9)
    run_study(trajectory, again, settings, tmp_path / "run")
    scores = read_run(tmp_path / "run").scores
    assert len(scores) == 3 * 2 * 4
    assert scores["gamma"].map(math.isfinite).all()
    plain = scores[(scores["method"] == "sgd") & (scores["batch"] == 0)]
    assert plain["gamma"].nunique() == 3


def test_the_classifier_is_of_the_classes_of_the_data(models: dict[str, Path], cifar: Path) -> None:
    task = vision(models["vit"], cifar, adapter="none")
    model = task.build_model(0)
    inputs, _ = task.training_samples().take(slice(2))
    with torch.no_grad():
        assert evalkit.linearize(model.eval(), inputs, torch.tensor([0, 1])).logits.shape == (2, 3)
    assert len(trainable(model)) == len(list(model.parameters()))


# --- what cannot be used -------------------------------------------------------------------------


def sentence(task: Task, part: str = "data") -> str:
    with pytest.raises(EvalkitError) as caught:
        task.training_samples() if part == "data" else task.build_model(0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pictures_of_several_sizes(models: dict[str, Path], tmp_path: Path) -> None:
    pictures = [*hub.pixels(2, 8, 8, 3), *hub.pixels(1, 9, 8, 3)]
    task = vision(models["vit"], hub.save_pictures(tmp_path, pictures))
    text = sentence(task)
    assert f"expected pictures of one size in the data '{tmp_path}', found 2 sizes" in text


def test_pictures_in_other_columns(models: dict[str, Path], tmp_path: Path) -> None:
    data = hub.save_pictures(tmp_path / "a", PICTURES[:2], column="photo")
    text = sentence(vision(models["vit"], data))
    assert "expected columns 'img' or 'image' and 'label'" in text
    assert "found photo, label" in text
    data = hub.save_pictures(tmp_path / "b", PICTURES[:2])
    assert "'fine_label'" in sentence(vision(models["vit"], data, "vit-cifar100"))


def test_labels_without_classes(models: dict[str, Path], tmp_path: Path) -> None:
    hub.save_rows(tmp_path, {"train": (rows := {"img": [1], "label": [0]}), "test": rows})
    text = sentence(vision(models["vit"], tmp_path), "model")
    assert "expected the column 'label'" in text
    assert "datasets.ClassLabel" in text
