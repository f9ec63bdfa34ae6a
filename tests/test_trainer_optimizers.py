"""The method ``optimizer`` where the Hugging Face Trainer trains: its folders, and the callback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.callback.trainer_batches import TrainerBatches, evaluated, supervised
from evalkit.checkpoints import load_into, open_trajectory
from evalkit.checkpoints.optimizer_files import read_optimizer
from evalkit.cli import main
from evalkit.settings import Settings
from evalkit.training.saved_optimizers import restored
from tests.support import trainers

TASK = """import torch
import evalkit
from tests.support import trainers

def model():
    return trainers.bert(num_labels=3)

def data():
    rows = trainers.samples()
    words = torch.stack([row["input_ids"] for row in rows])
    return {"input_ids": words}, torch.tensor([row["labels"] for row in rows])

task = evalkit.Task(model=model, data=data)
"""


def step(model: nn.Module, optimizer: Any, **settings: Any) -> Tensor:
    rows = trainers.samples()[:6]
    words = torch.stack([row["input_ids"] for row in rows])
    targets = torch.tensor([row["labels"] for row in rows])
    with evaluated(model):
        lin = evalkit.linearize(model, {"input_ids": words}, targets)
        return evalkit.update("optimizer", lin, optimizer=optimizer, **settings)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"])
@pytest.mark.parametrize("kind", ["lora", "whole"])
def test_the_step_of_a_folder_is_that_of_the_trainers_optimizer(
    tmp_path: Path, kind: str, optim: str
) -> None:
    """Parameters, groups, decay and moments are those that the Trainer stepped with."""
    model = trainers.adapted() if kind == "lora" else trainers.bert(num_labels=3)
    trained = trainers.trainer(
        tmp_path / "run", model=model, optim=optim, weight_decay=0.1, learning_rate=1e-3
    )
    trained.train()
    checkpoint = open_trajectory(tmp_path / "run").checkpoints[-1]
    saved = read_optimizer(checkpoint)
    assert saved.by_trainer
    read = restored(saved, model)
    assert type(read) is type(trained.optimizer.optimizer)
    expected = step(model, trained.optimizer)
    assert torch.equal(step(model, read), expected)
    if kind == "whole":
        assert len(read.param_groups[1]["params"]) > len(read.param_groups[0]["params"])
        assert not torch.equal(step(model, read, decay=False), expected)


def test_the_command_scores_a_lora_run(tmp_path: Path, capsys: Any) -> None:
    trainers.trainer(tmp_path / "run", weight_decay=0.1).train()
    (tmp_path / "mine.py").write_text(TASK, encoding="utf-8")
    given = ["--task", f"{tmp_path / 'mine.py'}:task", "--batches", "2", "--batch-size", "8"]
    given += ["--methods", "sgd,ief,optimizer,optimizer:momentum=false"]
    assert main(["score", f"{tmp_path / 'run'}", *given, "--out", f"{tmp_path / 'out'}"]) == 0
    assert "optimiser's step" in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert rows[rows.method == "optimizer"].gamma.gt(0).all()
    listed = json.loads((tmp_path / "out" / "run.json").read_text())["optimizers"]
    assert [entry["checkpoint"] for entry in listed] == ["checkpoint-2", "checkpoint-4"]
    assert {entry["class"] for entry in listed} == {"torch.AdamW"}


def test_the_callback_scores_the_trainers_own_optimizer(tmp_path: Path) -> None:
    """Rows are those of the saved state, and training ends with the same bits."""
    methods = ("sgd", "optimizer")
    watch = trainers.ScoreCallback(tmp_path / "out", methods, batches=1, batch_size=8)
    one = trainers.trainer(tmp_path / "run", watch, data_collator=together)
    one.train()
    other = trainers.trainer(tmp_path / "other", data_collator=together)
    other.train()
    for left, right in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(left, right)
    rows = pd.read_csv(tmp_path / "out" / "scores.csv").set_index(["checkpoint", "method"])
    assert set(rows.loc["checkpoint-2"].index) == set(methods)
    checkpoint = open_trajectory(tmp_path / "run").checkpoints[0]
    load_into(one.model, checkpoint)
    read = restored(read_optimizer(checkpoint), one.model)
    batch = watch_batch(one)
    with evaluated(one.model):
        table = evalkit.score(one.model, *batch, methods=methods, optimizer=read)
    expected = table.set_index("method")
    found = rows.loc["checkpoint-2"]
    assert found.gamma["optimizer"] == pytest.approx(expected.gamma["optimizer"], rel=1e-5)


def together(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Make a batch without drawing anything."""
    return {key: torch.stack([torch.as_tensor(f[key]) for f in features]) for key in features[0]}


def watch_batch(trained: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Return the batch that the callback draws first."""
    loader = trained.get_train_dataloader()
    batches = TrainerBatches(loader.dataset, loader.collate_fn)
    made = supervised(trained.model, batches.draw(Settings(batches=1, batch_size=8), 0), False)
    return made.inputs, made.targets
