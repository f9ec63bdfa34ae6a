"""How a task is trained: optimizers, schedules, the history, and the command."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from evalkit.checkpoints.manifest import MANIFEST_NAME
from evalkit.cli import main
from evalkit.storage.history import read_history
from evalkit.storage.rows import TrainingStep
from evalkit.tasks import Recipe
from evalkit.training import Epoch, schedules, train
from evalkit.training.registry import REGISTRY
from tests.support.documents import document, python_files
from tests.support.refusals import refusal, sentence
from tests.support.trainings import small_task


@pytest.fixture
def own_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimizers that a test registers end with it."""
    monkeypatch.setattr(REGISTRY, "_entries", dict(REGISTRY._entries))


def test_muon_has_the_hidden_matrices_and_adamw_the_rest(tmp_path: Path) -> None:
    train(small_task(), folder=tmp_path, optimizer="muon")
    state = torch.load(tmp_path / "step-000012.optimizer.pt", weights_only=True)
    matrices, others = state["names"]
    assert matrices == ["first.weight"]
    assert others == ["first.bias", "norm.weight", "norm.bias", "last.weight", "last.bias"]
    assert state["settings"]["momentum"] == 0.95
    narrow = small_task(model=lambda: nn.Linear(4, 3))
    said = refusal(lambda: train(narrow, folder=tmp_path / "new", optimizer="muon"))
    assert "expected trainable matrices of hidden layers in Linear" in said
    assert not (tmp_path / "new").exists()


def test_the_history_has_a_row_for_each_step(tmp_path: Path) -> None:
    rows: list[TrainingStep] = []
    epochs: list[Epoch] = []
    train(
        small_task(),
        folder=tmp_path,
        schedule="step:at=0.5:factor=0.1",
        on_step=rows.append,
        on_epoch=epochs.append,
    )
    table = read_history(tmp_path)
    assert list(table.columns) == ["step", "epoch", "progress", "loss", "learning_rate", "skipped"]
    assert table["step"].tolist() == list(range(1, 13))
    assert table["epoch"].tolist() == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert table["progress"].tolist() == [step / 12 for step in range(1, 13)]
    assert table["learning_rate"].tolist() == [0.05] * 6 + [0.1 * 0.05] * 6
    assert table["skipped"].tolist() == [0] * 12
    assert [row.loss for row in rows] == table["loss"].tolist()
    for epoch in epochs:
        sizes, losses = [5, 5, 2], table["loss"][table["epoch"] == epoch.number]
        mean = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / 12
        assert epoch.loss == pytest.approx(mean)


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4]),
        ("step", [1, 0.1, 0.1, 0.1]),
        ("step:at=0.5", [1, 1, 0.1, 0.1]),
        ("step:at=0.6:factor=0.5", [1, 1, 1, 0.5]),
    ],
)
def test_schedules(text: str, factors: list[float]) -> None:
    factor = schedules.find(text)
    assert [factor(share / 4) for share in range(4)] == pytest.approx(factors)


def test_a_decay_at_an_epoch_begins_with_the_first_step_of_the_next() -> None:
    factor, steps = schedules.find("step"), 60 * 23
    changed = next(step for step in range(steps) if factor(step / steps) < 1)
    assert changed == 15 * 23


def test_settings_of_the_task_are_for_its_own_optimizer(tmp_path: Path) -> None:
    own = small_task(recipe=Recipe(optimizer="sgd", momentum=0.9, epochs=1, batch_size=5))
    trained = train(own, folder=tmp_path / "own").manifest
    assert trained is not None
    assert trained["recipe"]["momentum"] == 0.9
    other = train(own, folder=tmp_path / "other", optimizer="adamw").manifest
    assert other is not None
    assert other["recipe"]["momentum"] is None


def test_the_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = tmp_path / "mine.py", tmp_path / "out"
    file.write_text(
        "import torch, evalkit\n"
        "task = evalkit.Task(\n"
        "    model=lambda: torch.nn.Linear(3, 2),\n"
        "    data=lambda: (torch.eye(3).repeat(4, 1), torch.arange(12) % 2),\n"
        "    recipe=evalkit.tasks.Recipe(epochs=2, batch_size=4, checkpoint_every=1),\n"
        ")\n"
    )
    given = [
        "train",
        f"{file}:task",
        "--out",
        str(folder),
        "--optimizer",
        "sgd",
        "--momentum",
        "0.9",
    ]
    finish = "evalkit.training.folders.finish"

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish, interrupt)
        assert main(given) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert main(given) == 2
    assert "pass --resume to go on with it" in capsys.readouterr().err
    assert main(["score", str(folder), "--task", f"{file}:task"]) == 2
    assert "with --resume" in capsys.readouterr().err
    assert main([*given, "--learning-rate", "0.5", "--resume"]) == 2
    assert "expected --learning-rate of 0.001" in capsys.readouterr().err
    assert main([*given, "--resume"]) == 0
    assert "3 checkpoints in" in capsys.readouterr().out
    assert (folder / MANIFEST_NAME).is_file()


def test_an_optimizer_of_ones_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own_optimizers: None,
) -> None:
    page = document("guides/training.md")
    monkeypatch.chdir(tmp_path)
    for name, content in python_files(page).items():
        Path(name).write_text(content, encoding="utf-8")
    (line,) = [line.split() for line in page.splitlines() if "--load" in line and "    ev" in line]
    assert main([*line[1:], "--epochs", "1"]) == 0
    state = torch.load("rmsprop/step-000023.optimizer.pt", weights_only=True)
    assert state["settings"]["momentum"] == 0.9
    assert set(state["state_dict"]["state"][0]) >= {"square_avg", "momentum_buffer"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--optimizer", "adamw", "--damping", "1"],
            "expected no damping for the optimizer 'adamw'",
        ),
        (["--optimizer", "kfax"], "unknown optimizer 'kfax'; did you mean 'kfac'"),
        (["--optimizer", "ief"], "pass --learning-rate, such as 50 for ief, as the paper has it"),
        (["--schedule", "linaer"], "unknown schedule 'linaer'; did you mean 'linear'"),
        (["--schedule", "step:at=2"], "a share from 0 to 1"),
        (["--on-failure", "raise"], "leave out --on-failure, or choose one that has it: ief"),
        (["--momentum", "0.9"], "leave out --momentum, or choose one that has it: sgd, muon"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sentence(capsys, ["train", "digits-mlp", *options, "--out", str(tmp_path / "new")])
    assert expected in found
    assert list(tmp_path.iterdir()) == []


def test_the_list_has_optimizers_and_schedules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in ("muon", "adafactor", "cosine", "step"):
        assert f"\n  {name} " in shown
