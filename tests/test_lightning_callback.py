"""The callback of Lightning: rows of evalkit.score, and a training that notices nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

pytest.importorskip("lightning", reason="the callback needs lightning")

import lightning.pytorch as pl

from evalkit import EvalkitError
from evalkit.callback import LightningScoreCallback
from evalkit.results.summaries import summarize
from evalkit.scoring import score
from evalkit.storage.run_folder import read_run
from evalkit.storage.tables import BATCHES_FILE, SCORES_FILE, names_of
from evalkit.study.batches import batch_seed

METHODS = ("sgd", "ef", "ief", "sf")
SAMPLES, STEPS = 24, 6
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Numbers(Dataset):
    """Samples with noise, as augmentation adds it."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(5, generator=generator) + 0.1 * torch.randn(5), index % 3


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, index: int) -> Tensor:
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self(inputs), targets)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        inputs, targets = batch
        self.log("validation_loss", nn.functional.cross_entropy(self(inputs), targets))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Listener(pl.loggers.logger.DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.seen.setdefault(step, {}).update(metrics)


class Weights(pl.Callback):
    """Keeps the weights at every checkpoint."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, Tensor]] = {}

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        state = pl_module.state_dict()
        self.at[trainer.global_step] = {name: value.clone() for name, value in state.items()}


def fit(place: Path, *callbacks: Any, resumed: str | None = None, **changes: Any) -> Any:
    pl.seed_everything(7, verbose=False)
    module = changes.pop("module", None) or Classifier()
    made = pl.Trainer(
        **{
            "max_steps": STEPS,
            "default_root_dir": str(place),
            "accelerator": "cpu",
            "logger": Listener(),
            "callbacks": [pl.callbacks.ModelCheckpoint(every_n_train_steps=3), *callbacks],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            **changes,
        }
    )
    made.fit(module, DataLoader(Numbers(), 4, shuffle=True), ckpt_path=resumed)
    return made


def scorer(folder: Path, **changes: Any) -> LightningScoreCallback:
    return LightningScoreCallback(folder, METHODS, **{"batches": 2, "batch_size": 8, **changes})


def test_rows_are_those_of_score_and_means_are_logged(tmp_path: Path) -> None:
    weights, callback = Weights(), scorer(tmp_path / "run")
    made = fit(tmp_path / "out", callback, weights)
    run = read_run(tmp_path / "run")
    assert tuple(run.scores.columns) == names_of(SCORES_FILE)
    assert tuple(run.batches.columns) == names_of(BATCHES_FILE)
    assert run.provenance["finished"] is not None
    assert run.provenance["task"] == "Classifier"
    assert run.provenance["training_steps"] == STEPS
    places = run.batches[["checkpoint", "step", "progress", "batch"]].values.tolist()
    assert places == [
        [f"checkpoint-{step}", step, step / STEPS, batch] for step in (0, 3, 6) for batch in (0, 1)
    ]
    model = Classifier().eval()
    for step in (3, 6):
        model.load_state_dict(weights.at[step])
        for batch in (0, 1):
            drawn = callback._draw(model, batch)
            seed = batch_seed(0, batch, "methods")
            expected = score(model, drawn.inputs, drawn.targets, methods=METHODS, seed=seed)
            found = run.scores[(run.scores["step"] == step) & (run.scores["batch"] == batch)]
            pd.testing.assert_frame_equal(
                found[list(expected.columns)].reset_index(drop=True),
                expected,
                check_dtype=False,
                rtol=1e-9,
            )
    for row in summarize(run).to_dict("records"):
        logged = made.logger.seen[row["step"]]
        assert logged[f"gamma/{row['method']}"] == row["gamma_mean"]
        assert logged[f"ratio/{row['method']}"] == row["ratio_mean"]
    assert made.logger.seen[3]["loss"] > 0  # beside the loss


@pytest.mark.parametrize("validated", [False, True])
def test_training_ends_with_the_same_bits(tmp_path: Path, validated: bool) -> None:
    ends = []
    for callbacks in ((), (scorer(tmp_path / "run"),)):
        module = Classifier()
        changes: dict[str, Any] = {"module": module}
        if validated:  # checkpoints are saved within validation then, without gradients
            module.val_dataloader = lambda: DataLoader(Numbers(), 4)  # type: ignore[method-assign]
            best = pl.callbacks.ModelCheckpoint(monitor="validation_loss", save_last=True)
            changes |= {"callbacks": [best, *callbacks], "max_steps": 12}
        fit(tmp_path / "out", *callbacks, **changes)
        assert module.training
        ends.append({name: value.clone() for name, value in module.state_dict().items()})
    assert sorted(read_run(tmp_path / "run").batches["step"].unique()) == (
        [0, 6, 12] if validated else [0, 3, 6]
    )
    for name, start in Classifier().state_dict().items():
        assert torch.equal(ends[0][name], ends[1][name]), name
        assert not torch.equal(ends[0][name], start)


def test_a_resumed_training_goes_on_with_its_run(tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    kept = pl.callbacks.ModelCheckpoint(out / "kept", every_n_train_steps=3, save_top_k=-1)
    fit(out, callbacks=[kept, scorer(folder)])
    whole = (folder / "scores.csv").read_bytes()
    with pytest.raises(EvalkitError, match=r"found a run in .*name another folder"):
        fit(out, scorer(folder))
    (saved,) = (out / "kept").glob("*step=3.ckpt")
    fit(out, scorer(folder), resumed=str(saved))
    run = read_run(folder)
    assert sorted(run.batches["step"].unique()) == [0, 3, 6]
    # The order of samples is not restored, so that the last step is another one.
    assert (folder / "scores.csv").read_bytes().splitlines()[:17] == whole.splitlines()[:17]


def test_a_submodule_and_a_form_of_batches_can_be_named(tmp_path: Path) -> None:
    callback = LightningScoreCallback(
        tmp_path / "run",
        ("sgd", "optimizer"),
        batches=1,
        batch_size=8,
        initial=False,
        model="net",
        pair=lambda batch: (batch[0], batch[1]),
    )
    fit(tmp_path / "out", callback)
    run = read_run(tmp_path / "run")
    assert run.provenance["task"] == "Sequential"
    assert set(run.scores["method"]) == {"sgd", "optimizer"}
    assert sorted(run.batches["step"].unique()) == [3, 6]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 25}, "expected a batch_size of at most 24"),
        ({"model": "body"}, "expected a module 'body' in Classifier, found NoneType"),
        ({"likelihood": "binary"}, "unknown likelihood 'binary'"),
    ],
)
def test_what_cannot_be_scored_is_refused_at_the_start(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(EvalkitError, match=said):
        fit(tmp_path / "out", scorer(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_training_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalkitError, match="expected a training with an end, found inf steps"):
        fit(tmp_path / "out", scorer(tmp_path / "run"), max_steps=-1, max_epochs=-1)
