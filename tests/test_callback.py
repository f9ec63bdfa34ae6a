"""The callback of the Trainer: the same tables as a study, and a training that notices nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("peft")

import transformers
from transformers.modeling_outputs import SequenceClassifierOutput

from evalkit import EvalkitError
from evalkit.callback import ScoreCallback
from evalkit.callback.trainer_batches import supervised
from evalkit.checkpoints.saved import find_saved, saved_hash
from evalkit.cli import main
from evalkit.report.writing import report_run
from evalkit.results.summaries import summarize
from evalkit.scoring import score
from evalkit.storage.run_folder import read_run
from evalkit.storage.tables import BATCHES_FILE, SCORES_FILE, names_of
from evalkit.study.batches import batch_seed
from tests.support.trainers import METHODS, WORDS, Masking, adapted, scorer, trainer


class Watch(transformers.TrainerCallback):
    """Reports the run at every save, as somebody does who watches it, or only reads it."""

    def __init__(self, folder: Path, reports: bool = True) -> None:
        self.folder, self.reports = folder, reports
        self.seen: list[tuple[int, bool]] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = read_run(self.folder)
        if self.reports:
            place = report_run(self.folder).place
            assert str(state.global_step) in place.read_text(encoding="utf-8")
        self.seen.append((run.scores["checkpoint"].nunique(), bool(run.provenance["finished"])))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Watch]:
    place = tmp_path_factory.mktemp("watched")
    watch = Watch(place / "run")
    made = trainer(place / "out", scorer(place / "run", initial=False, batches=3), watch)
    made.train()
    return made, place, watch


def test_a_run_can_be_watched_and_is_finished_in_the_end(
    watched: tuple[Any, Path, Watch],
) -> None:
    _, place, watch = watched
    run = read_run(place / "run")
    assert watch.seen == [(1, False), (2, False)]
    assert tuple(run.scores.columns) == names_of(SCORES_FILE)
    assert tuple(run.batches.columns) == names_of(BATCHES_FILE)
    assert run.provenance["finished"] is not None
    assert run.provenance["task"] == "BertForSequenceClassification"
    kept = run.batches[["checkpoint", "step", "progress", "batch"]].values.tolist()
    assert kept == [
        ["checkpoint-2", 2, 0.5, 0],
        ["checkpoint-2", 2, 0.5, 1],
        ["checkpoint-2", 2, 0.5, 2],
        ["checkpoint-4", 4, 1.0, 0],
        ["checkpoint-4", 4, 1.0, 1],
        ["checkpoint-4", 4, 1.0, 2],
    ]
    for entry in run.provenance["checkpoints"]:
        saved = find_saved(place / "out" / entry["name"])
        assert saved.is_adapter
        assert entry["sha256"] == saved_hash(saved)


def test_rows_are_those_of_the_saved_model(watched: tuple[Any, Path, Watch]) -> None:
    made, place, _ = watched
    callback = scorer(place / "other")
    made.data_collator = Masking()
    loader = made.get_train_dataloader()
    state = transformers.TrainerState(max_steps=4)
    model = made.model.eval()
    names = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in names)
    callback.on_train_begin(made.args, state, None, model=model, train_dataloader=loader)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == names
    batch = supervised(model, callback._batches.draw(callback.settings, 1))
    seed = batch_seed(0, 1, "methods")
    expected = score(model, batch.inputs, batch.targets, methods=METHODS, seed=seed)
    for folder, name in (("run", "checkpoint-4"), ("other", "checkpoint-0")):
        scores = read_run(place / folder).scores
        found = scores[(scores["checkpoint"] == name) & (scores["batch"] == 1)]
        pd.testing.assert_frame_equal(
            found[list(expected.columns)].reset_index(drop=True),
            expected,
            check_dtype=False,
            rtol=1e-9,
        )


def test_a_batch_is_the_same_whenever_it_is_drawn(watched: tuple[Any, Path, Watch]) -> None:
    made, place, _ = watched
    callback = scorer(place / "drawn", initial=False)
    kwargs = {"model": made.model, "train_dataloader": made.get_train_dataloader()}
    callback.on_train_begin(made.args, transformers.TrainerState(max_steps=4), None, **kwargs)
    first = callback._batches.draw(callback.settings, 0)
    torch.rand(5, generator=made.data_collator.generator)
    again, other = (callback._batches.draw(callback.settings, batch) for batch in (0, 1))
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["input_ids"], other["input_ids"])


def test_the_gate_takes_the_run(watched: tuple[Any, Path, Watch]) -> None:
    _, place, _ = watched
    baseline = ["check", str(place / "run"), "--baseline", str(place / "baseline.csv")]
    for arguments in ([*baseline, "--update-baseline"], baseline):
        assert main(arguments) == 0


def test_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    ends = []
    for callbacks in ((), (scorer(tmp_path / "run"),)):
        made = trainer(tmp_path / "out", *callbacks)
        made.train()
        assert made.model.training
        ends.append(made.model.state_dict())
    assert len(read_run(tmp_path / "run").batches) == 6
    moved = 0
    for name, start in adapted().state_dict().items():
        assert torch.equal(ends[0][name], ends[1][name]), name
        moved += not torch.equal(ends[0][name], start)
    assert moved == 6  # A and B of query and value, weight and bias of the classifier


def test_means_are_logged_to_what_the_trainer_reports_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    made = trainer(
        tmp_path / "out",
        scorer(tmp_path / "run"),
        report_to=["tensorboard"],
        logging_strategy="steps",
        logging_steps=1,
    )
    made.train()
    (place,) = {path.parent for path in (tmp_path / "logs").rglob("events*")}
    events = EventAccumulator(str(place)).Reload()
    assert [one.step for one in events.Scalars("train/loss")] == [1, 2, 3, 4]
    summary = summarize(read_run(tmp_path / "run"))
    for method, rows in summary.groupby("method"):
        for name in ("gamma", "ratio"):
            logged = {one.step: one.value for one in events.Scalars(f"train/{name}/{method}")}
            means = dict(zip(rows["step"], rows[f"{name}_mean"], strict=True))
            assert logged == pytest.approx(means, rel=1e-6)
    assert set(summary["method"]) == set(METHODS)
    told = [row for row in made.state.log_history if "gamma/floor" in row]
    assert [row["step"] for row in told] == [0, 2, 4]


def test_a_resumed_training_goes_on_with_its_run(tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    trainer(out, scorer(folder)).train()
    whole = (folder / "scores.csv").read_bytes()
    with pytest.raises(EvalkitError, match=r"found a run in .*name another folder"):
        trainer(out, scorer(folder)).train()
    resumed = str(out / "checkpoint-2")
    with pytest.raises(EvalkitError, match="another training steps: 4 instead of 6"):
        trainer(out, scorer(folder), max_steps=6).train(resume_from_checkpoint=resumed)
    with pytest.raises(EvalkitError, match="another seed: 0 instead of 1"):
        trainer(out, scorer(folder, seed=1)).train(resume_from_checkpoint=resumed)
    assert (folder / "scores.csv").read_bytes() == whole
    # The second batch of the checkpoint that is resumed was never scored, and what follows it is
    # of a training that is given up.
    path = folder / "batches.csv"
    lines = path.read_text(encoding="utf-8").splitlines(True)
    later = [line.replace(",1.0,0,8,", ",1.0,0,9,") for line in lines[5:]]
    assert later != lines[5:]
    path.write_text("".join(lines[:4] + later), encoding="utf-8")
    watch = Watch(folder, reports=False)
    trainer(out, scorer(folder), watch).train(resume_from_checkpoint=resumed)
    assert watch.seen == [(3, False)]
    run = read_run(folder)
    assert [item["name"] for item in run.provenance["checkpoints"]] == [
        "checkpoint-0",
        "checkpoint-2",
        "checkpoint-4",
    ]
    kept = pd.read_csv(folder / "scores.csv")
    assert kept.groupby("checkpoint")["batch"].apply(list).map(len).to_list() == [8, 8, 8]
    assert (run.batches["num_samples"] == 8).all()
    # The Trainer does not restore the collator's generator, so later words are hidden anew.
    lines, before = ((folder / "scores.csv").read_bytes().splitlines(), whole.splitlines())
    assert lines[:17] == before[:17]


class Loud(nn.Module):
    """A classifier whose logits are never the same twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        hidden = self.embedding(input_ids).mean(1)
        logits = self.head(hidden + torch.randn_like(hidden))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def test_what_cannot_be_scored_is_a_warning_and_training_goes_on(tmp_path: Path) -> None:
    made = trainer(tmp_path / "out", scorer(tmp_path / "run"), model=Loud())
    with pytest.warns(UserWarning, match="checkpoint 'checkpoint-2', batch 0: expected a determin"):
        made.train()
    assert made.state.global_step == 4
    assert not (tmp_path / "run").exists()


def test_mixed_precision_does_not_reach_the_scores(tmp_path: Path) -> None:
    for name, changes in (("plain", {}), ("mixed", {"bf16": True})):
        scored = scorer(tmp_path / name)
        made = trainer(tmp_path / "out" / name, scored, max_steps=1, **changes)
        made.train()
        forward = made.model.__dict__.get("forward")
        assert (forward is not None) == bool(changes)
    plain, mixed = (read_run(tmp_path / name).scores for name in ("plain", "mixed"))
    first = [scores[scores["checkpoint"] == "checkpoint-0"] for scores in (plain, mixed)]
    pd.testing.assert_frame_equal(*first)


def test_a_compiled_model_is_scored_as_the_one_inside(
    tmp_path: Path, watched: tuple[Any, Path, Watch]
) -> None:
    made = watched[0]
    state = transformers.TrainerState(max_steps=4, is_world_process_zero=True)
    rows = []
    for name in ("plain", "compiled"):
        model = made.model if name == "plain" else torch.compile(made.model, backend="aot_eager")
        callback, loader = scorer(tmp_path / name, batches=1), made.get_train_dataloader()
        callback.on_train_begin(made.args, state, None, model=model, train_dataloader=loader)
        rows.append((tmp_path / name / "scores.csv").read_bytes())
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 25}, "batch_size of at most 24"),
        ({"methods": ("sgd", "eff")}, "ef"),
        ({"batches": 0}, "batches of at least 1"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_training(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(EvalkitError, match=sentence):
        trainer(tmp_path / "out", ScoreCallback(tmp_path / "run", **changes)).train()
    assert not (tmp_path / "run").exists()


def test_sharded_parameters_are_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path / "out")
    made.args.fsdp = True
    kwargs = {"model": made.model, "train_dataloader": made.get_train_dataloader()}
    state = transformers.TrainerState(max_steps=4)
    with pytest.raises(EvalkitError, match="sharded parameters"):
        scorer(tmp_path / "run").on_train_begin(made.args, state, None, **kwargs)


def test_another_loss_than_the_likelihood_is_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path / "out", scorer(tmp_path / "run"), label_smoothing_factor=0.2)
    with pytest.raises(EvalkitError, match="label_smoothing_factor"):
        made.train()


def test_only_the_first_process_scores(tmp_path: Path) -> None:
    made = trainer(tmp_path / "out")
    kwargs = {"model": made.model, "train_dataloader": made.get_train_dataloader()}
    callback = scorer(tmp_path / "run")
    state = transformers.TrainerState(max_steps=4, is_world_process_zero=False)
    for event in (callback.on_train_begin, callback.on_save, callback.on_train_end):
        event(made.args, state, None, **kwargs)
    assert not (tmp_path / "run").exists()
