"""Training: trajectories that are complete, reproducible, and never half-written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evalkit.checkpoints import (
    load_into,
    open_trajectory,
    trajectory_task,
    verify_trajectory,
)
from evalkit.checkpoints.manifest import MANIFEST_NAME
from evalkit.errors import EvalkitError
from evalkit.likelihoods import Categorical
from evalkit.storage.history import HISTORY_FILE
from evalkit.tasks import Recipe, Task, load_task
from evalkit.training import optimizers
from evalkit.training.loop import Epoch, train
from tests.support.folders import BUNDLED

INPUTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
LABELS = INPUTS[:, :3].argmax(1)


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))


def small_task(**changes: Any) -> Task:
    settings: dict[str, Any] = {
        "model": build,
        "data": lambda: (INPUTS, LABELS),
        "validation": lambda: (INPUTS[:10], LABELS[:10]),
        "recipe": Recipe(learning_rate=0.02, epochs=3, batch_size=10, checkpoint_every=2),
        "name": "small",
    }
    return Task(**{**settings, **changes})


def hashes(folder: Path, **settings: Any) -> list[str]:
    return [c.sha256 for c in train(small_task(), folder=folder, **settings).checkpoints]


def refused(tmp_path: Path, task: Task | None = None, **settings: Any) -> str:
    """The sentence with which training is refused; nothing may be left behind."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EvalkitError) as caught:
        train(task or small_task(), **{"folder": tmp_path / "deep" / "out", **settings})
    assert sorted(tmp_path.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_trajectory_of_digits(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "digits"
    reports: list[Epoch] = []
    state = torch.get_rng_state()
    trajectory = train(
        load_task("digits-mlp"),
        folder=folder,
        epochs=3,
        checkpoint_every=2,
        on_epoch=reports.append,
    )
    assert torch.equal(state, torch.get_rng_state())
    assert [c.step for c in trajectory.checkpoints] == [0, 46, 69]
    assert [c.epoch for c in trajectory.checkpoints] == [0, 2, 3]
    assert [c.progress for c in trajectory.checkpoints] == [0.0, 2 / 3, 1.0]
    assert [c.path.name for c in trajectory.checkpoints] == [
        "step-000000.safetensors",
        "step-000046.safetensors",
        "step-000069.safetensors",
    ]
    assert [(r.number, r.of, r.step) for r in reports] == [(1, 3, 23), (2, 3, 46), (3, 3, 69)]
    assert reports[0].loss > reports[1].loss > reports[2].loss
    first, _, last = trajectory.checkpoints
    assert first.training_loss is not None
    assert last.training_loss is not None
    assert last.validation_accuracy is not None
    assert first.training_loss == pytest.approx(math.log(10), rel=0.1)
    assert last.training_loss < first.training_loss
    assert last.validation_accuracy > 0.6
    task = trajectory_task(trajectory)
    verify_trajectory(trajectory, task.build_model(1))
    # The first checkpoint is the initialised model.
    target = task.build_model(1)
    load_into(target, first)
    for found, expected in zip(target.parameters(), task.build_model(0).parameters(), strict=True):
        assert torch.equal(found, expected)


def test_the_manifest_says_how_it_was_made(tmp_path: Path) -> None:
    trajectory = train(small_task(), folder=tmp_path / "out", optimizer="sgd", seed=5)
    manifest = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())
    assert trajectory.manifest == manifest
    assert manifest["task"] == "small"
    assert manifest["seed"] == 5
    assert manifest["parameters"] == 4 * 8 + 8 + 8 * 3 + 3
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["recipe"] == {
        "optimizer": "sgd",
        "learning_rate": 0.02,
        "weight_decay": 0.01,
        "epochs": 3,
        "batch_size": 10,
        "checkpoint_every": 2,
        "schedule": "constant",
        "damping": None,
        "momentum": None,
        "normalise": None,
        "on_failure": None,
    }
    listed = [entry[key] for entry in manifest["checkpoints"] for key in ("file", "optimizer")]
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == sorted([*listed, HISTORY_FILE, MANIFEST_NAME])


def test_losses_and_accuracies_are_those_of_the_saved_model(tmp_path: Path) -> None:
    trajectory = train(small_task(), folder=tmp_path / "out")
    model = build().eval()
    for checkpoint in trajectory.checkpoints:
        load_into(model, checkpoint)
        logits = model(INPUTS)
        loss = nn.functional.cross_entropy(logits.double(), LABELS).item()
        accuracy = (logits[:10].argmax(1) == LABELS[:10]).double().mean().item()
        assert checkpoint.training_loss == pytest.approx(loss, rel=1e-6)
        assert checkpoint.validation_accuracy == pytest.approx(accuracy)


def test_the_step_is_that_of_the_mean_loss(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    task = small_task(model=lambda: _with_values(nn.Linear(4, 3), start))
    trajectory = train(
        task,
        folder=tmp_path / "out",
        optimizer="sgd",
        learning_rate=0.5,
        weight_decay=0.0,
        epochs=1,
        batch_size=24,
    )
    nn.functional.cross_entropy(model(INPUTS), LABELS).backward()
    assert isinstance(model.weight.grad, Tensor)
    after = nn.Linear(4, 3)
    load_into(after, trajectory.checkpoints[-1])
    expected = start["weight"] - 0.5 * model.weight.grad
    torch.testing.assert_close(after.weight.detach(), expected)


def test_digits_are_trained_as_a_plain_loop_trains_them(tmp_path: Path) -> None:
    """The bundled trajectory is of this loop; digits after the last depend on the machine."""
    task = load_task("digits-mlp")
    trajectory = train(task, folder=tmp_path / "out", epochs=2, checkpoint_every=2)
    assert trajectory.checkpoints[0].sha256 == open_trajectory(BUNDLED).checkpoints[0].sha256
    model, (images, digits) = task.build_model(0), task.data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            Categorical().losses(model(images[batch]), digits[batch]).mean().backward()
            optimizer.step()
    trained = task.build_model(1)
    load_into(trained, trajectory.checkpoints[-1])
    for found, expected in zip(trained.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected)


def _with_values(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict(state)
    return module


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    first = hashes(tmp_path / "a", seed=3)
    torch.rand(3)  # the ambient generator has no say
    assert hashes(tmp_path / "b", seed=3) == first
    other = hashes(tmp_path / "c", seed=4)
    assert not set(first) & set(other)


@pytest.mark.parametrize("name", optimizers.names())
def test_every_optimizer_trains(tmp_path: Path, name: str) -> None:
    settings: dict[str, Any] = {"optimizer": name}
    if optimizers.steps_on_outputs(name):
        settings |= {"learning_rate": 0.1, "normalise": True}
    first, *_, last = train(small_task(), folder=tmp_path / "out", **settings).checkpoints
    assert first.training_loss is not None
    assert last.training_loss is not None
    assert last.training_loss < first.training_loss


class Named(nn.Module):
    """Takes keyword tensors, has a frozen layer and tied weights, returns an object."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight

    def forward(self, left: Tensor, right: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.second(self.first(self.frozen(left)) + right))


def test_other_forms_of_inputs_outputs_and_targets(tmp_path: Path) -> None:
    halves = {"left": INPUTS[:, :2], "right": INPUTS[:, 2:]}
    binary = small_task(
        model=Named,
        data=lambda: (halves, (INPUTS[:, :2] > 0).float()),
        validation=lambda: (halves, (INPUTS[:, :2] > 0).float()),
        likelihood="bernoulli",
    )
    trajectory = train(binary, folder=tmp_path / "bernoulli")
    assert trajectory.manifest is not None
    assert trajectory.manifest["parameters"] == 2 * 2 + 2 + 2
    accuracy = trajectory.checkpoints[-1].validation_accuracy
    assert accuracy is not None
    model = binary.build_model(0)
    load_into(model, trajectory.checkpoints[-1])
    right = (model(**halves).logits > 0) == (INPUTS[:, :2] > 0)
    assert accuracy == pytest.approx(right.double().mean().item())
    frozen = binary.build_model(0).get_parameter("frozen.weight")
    assert torch.equal(model.get_parameter("frozen.weight"), frozen)

    regression = small_task(
        data=lambda: ((INPUTS,), INPUTS[:, :3]),
        validation=lambda: ((INPUTS,), INPUTS[:, :3]),
        likelihood="gaussian",
    )
    (first, *_, last) = train(regression, folder=tmp_path / "gaussian").checkpoints
    assert last.validation_accuracy is None
    assert first.training_loss is not None
    assert last.training_loss is not None
    assert last.training_loss < first.training_loss


def test_labels_that_do_not_count(tmp_path: Path) -> None:
    labels = torch.stack([LABELS, torch.full_like(LABELS, -100)], 1)
    inputs = torch.stack([INPUTS, INPUTS], 1)
    positions = small_task(data=lambda: (inputs, labels), validation=lambda: (inputs, labels))
    single = small_task(validation=lambda: (INPUTS, LABELS))
    settings: dict[str, Any] = {"epochs": 1, "optimizer": "sgd"}
    both = train(positions, folder=tmp_path / "positions", **settings).checkpoints[0]
    one = train(single, folder=tmp_path / "single", **settings).checkpoints[0]
    assert both.training_loss == pytest.approx(one.training_loss, rel=1e-6)
    assert both.validation_accuracy == pytest.approx(one.validation_accuracy)


def test_an_empty_folder_is_used_and_a_full_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    train(small_task(), folder=tmp_path / "out")
    text = refused(tmp_path, folder=tmp_path / "out")
    assert str(tmp_path / "out") in text
    assert "not empty; choose another `folder`" in text
    assert "found a file" in refused(tmp_path, folder=tmp_path / "out" / MANIFEST_NAME)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 0}, "epochs to be an integer of at least 1, found 0"),
        ({"batch_size": 0}, "batch size to be an integer of at least 1, found 0"),
        ({"batch_size": 25}, "batch size of at most 24"),
        ({"checkpoint_every": 0}, "checkpoint every"),
        ({"learning_rate": 0}, "learning rate above 0, found 0"),
        ({"learning_rate": -1.0}, "learning rate above 0, found -1.0"),
        ({"weight_decay": -1.0}, "weight decay of at least 0, found -1.0"),
        ({"optimizer": "adamx"}, "unknown optimizer 'adamx'; did you mean"),
        ({"seed": "one"}, "seed that is a whole number"),
        ({"seed": -1}, "seed that is a whole number"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict, expected: str) -> None:
    assert expected in refused(tmp_path, **settings)


def test_models_that_do_not_fit_their_data(tmp_path: Path) -> None:
    narrow = small_task(model=lambda: nn.Linear(5, 3))
    assert "the model of task 'small' on its data to run, found RuntimeError" in refused(
        tmp_path, narrow
    )
    frozen = small_task(model=lambda: build().requires_grad_(False))
    assert "expected trainable parameters" in refused(tmp_path, frozen)
    other_classes = small_task(data=lambda: (INPUTS, LABELS + 5), validation=None)
    assert "expected classes from 0 to 2" in refused(tmp_path, other_classes)
    unlabelled = small_task(data=lambda: (INPUTS, torch.full_like(LABELS, -100)))
    assert "expected a label in every sample" in refused(tmp_path, unlabelled)
