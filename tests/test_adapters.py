"""Adapters written by PEFT itself: put on the task's model, loaded, and scored."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit.checkpoints import load_into, open_trajectory, verify_trajectory
from evalkit.checkpoints.manifest import MANIFEST_NAME
from evalkit.settings import Settings
from evalkit.storage.run_folder import read_run
from evalkit.study.provenance import describe_study
from evalkit.study.running import run_study
from evalkit.tasks import Task
from evalkit.testing import checkpoint_batches
from tests.support.adapters import (
    T5_TASK,
    TASK,
    adapted,
    adapter_values,
    bert,
    data,
    edit_config,
    lora,
    opened,
    prompts,
    save_adapter,
    t5,
    train_with_trainer,
)
from tests.support.folders import values

KINDS = {
    "lora": (TASK, lambda: lora()),
    "lora-with-biases": (TASK, lambda: lora(bias="lora_only", task_type=None, use_rslora=True)),
    "lora-on-embeddings": (TASK, lambda: lora(target_modules=["word_embeddings", "query"])),
    "prompts": (TASK, lambda: prompts()),
    "t5-lora": (T5_TASK, lambda: lora(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"])),
    "t5-prompts": (
        T5_TASK,
        lambda: prompts(task_type="SEQ_2_SEQ_LM", num_transformer_submodules=1),
    ),
}
"""A task and the configuration of an adapter on its model."""


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_saved_is_what_is_loaded(tmp_path: Path, kind: str) -> None:
    task, config = KINDS[kind]
    saved = [
        save_adapter(tmp_path / f"step-{step}", config(), step, task.build_base(1))
        for step in (1, 2)
    ]
    trajectory, built = opened(tmp_path, task)
    assert trajectory.is_adapter
    verify_trajectory(trajectory, built)
    frozen = {name: p.clone() for name, p in built.named_parameters() if not p.requires_grad}
    trainable = sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert 0 < trainable == sum(tensor.numel() for tensor in saved[0].values())
    for checkpoint, tensors in zip(trajectory.checkpoints, saved, strict=True):
        load_into(built, checkpoint)
        found = adapter_values(built)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    parameters = dict(built.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())
    assert trainable == sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert not built.training


def test_the_model_computes_what_peft_itself_loads(tmp_path: Path) -> None:
    import peft

    save_adapter(tmp_path / "step-1", lora())
    trajectory, built = opened(tmp_path)
    load_into(built, trajectory.checkpoints[0])
    theirs = peft.PeftModel.from_pretrained(TASK.build_base(0), tmp_path / "step-1").eval()
    inputs, _ = data()
    assert torch.equal(built(**inputs).logits, theirs(**inputs).logits)


@pytest.mark.parametrize("config", [lora, prompts])
def test_a_run_of_the_trainer(tmp_path: Path, config: Any) -> None:
    trained = adapter_values(train_with_trainer(adapted(bert(), config()), tmp_path))
    trajectory, built = opened(tmp_path)
    assert [c.name for c in trajectory.checkpoints] == ["checkpoint-2", "checkpoint-4"]
    assert [c.progress for c in trajectory.checkpoints] == [0.5, 1.0]
    verify_trajectory(trajectory, built)
    load_into(built, trajectory.checkpoints[1])
    found = adapter_values(built)
    assert all(torch.equal(found[name], trained[name]) for name in trained)


@pytest.mark.parametrize("config", [lora, prompts])
def test_an_adapter_saved_for_inference_is_scored(tmp_path: Path, config: Any) -> None:
    save_adapter(tmp_path / "step-1", config())
    edit_config(tmp_path / "step-1", inference_mode=True)
    save_adapter(tmp_path / "step-2", config(), 2)
    edit_config(tmp_path / "step-2", inference_mode=False, revision="other")
    _, built = opened(tmp_path)
    expected = adapter_values(built)
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == sum(
        tensor.numel() for tensor in expected.values()
    )


def test_a_pickle_of_an_adapter(tmp_path: Path) -> None:
    """PEFT wrote adapter_model.bin by default for long; this is the state dict that it saved."""
    tensors = save_adapter(tmp_path / "step-1", lora())
    (tmp_path / "step-1" / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "step-1" / "adapter_model.bin")
    trajectory, built = opened(tmp_path)
    load_into(built, trajectory.checkpoints[0])
    found = adapter_values(built)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_folder_of_save_pretrained(tmp_path: Path) -> None:
    save_adapter(tmp_path / "my-adapter", lora())
    bert().save_pretrained(tmp_path / "my-adapter")
    trajectory, built = opened(tmp_path / "my-adapter")
    assert [(c.name, c.progress) for c in trajectory.checkpoints] == [("my-adapter", 1.0)]
    assert trajectory.is_adapter
    assert trajectory.base_model is None
    verify_trajectory(trajectory, built)
    edit_config(tmp_path / "my-adapter", base_model_name_or_path="google/some-base")
    assert open_trajectory(tmp_path / "my-adapter").base_model == "google/some-base"


def test_resized_embeddings_are_saved_with_the_adapter(tmp_path: Path) -> None:
    with_embeddings = adapted(bert(), lora())
    with_embeddings.save_pretrained(tmp_path / "step-1", save_embedding_layers=True)
    trajectory, built = opened(tmp_path)
    name = "base_model.model.bert.embeddings.word_embeddings.weight"
    assert not torch.equal(built.state_dict()[name], with_embeddings.state_dict()[name])
    load_into(built, trajectory.checkpoints[0])
    assert torch.equal(built.state_dict()[name], with_embeddings.state_dict()[name])
    assert not dict(built.named_parameters())[name].requires_grad


def test_start_values_from_text_need_no_tokenizer(tmp_path: Path) -> None:
    saved = save_adapter(tmp_path / "step-1", prompts())
    edit_config(
        tmp_path / "step-1",
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="Classify",
        tokenizer_name_or_path="no/such-tokenizer",
    )
    trajectory, built = opened(tmp_path)
    load_into(built, trajectory.checkpoints[0])
    assert torch.equal(adapter_values(built)["prompt_embeddings"], saved["prompt_embeddings"])


@pytest.mark.parametrize("config", [lora, prompts])
def test_a_task_that_builds_the_adapter_itself(tmp_path: Path, config: Any) -> None:
    task = Task(model=lambda: adapted(bert(), config()), data=data, name="own")
    saved = save_adapter(tmp_path / "step-1", config())
    trajectory, built = opened(tmp_path, task)
    load_into(built, trajectory.checkpoints[0])
    found = adapter_values(built)
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_whole_models_load_into_the_base_of_a_task(tmp_path: Path) -> None:
    task = Task(model=lambda: adapted(bert(), lora()), data=data, base=bert, name="both")
    saved = bert()
    saved.save_pretrained(tmp_path / "step-1")
    trajectory, built = opened(tmp_path, task)
    load_into(built, trajectory.checkpoints[0])
    assert torch.equal(values(built), values(saved))
    assert all(p.requires_grad for p in built.parameters())


@pytest.mark.parametrize("config", [lora, prompts])
def test_a_study_of_adapters(tmp_path: Path, config: Any) -> None:
    for step in (1, 2):
        save_adapter(tmp_path / "run" / f"checkpoint-{step}", config(), step)
    settings = Settings(methods=("sgd", "ief"), batches=2, batch_size=4)
    trajectory = open_trajectory(tmp_path / "run")
    run_study(trajectory, TASK, settings, tmp_path / "out")
    scores = read_run(tmp_path / "out").scores
    assert len(scores) == 8
    assert (scores["slope"] > 0).all()
    assert scores["gamma"].nunique() == 8
    name, lin = next(checkpoint_batches(tmp_path / "run", _file(tmp_path), 1, 4))
    assert "checkpoint-1" in name
    assert lin.num_params == sum(
        t.numel() for t in adapter_values(opened(tmp_path / "run")[1]).values()
    )


def _file(folder: Path) -> str:
    (folder / "own_task.py").write_text("from tests.support.adapters import TASK as task\n")
    return f"{folder / 'own_task.py'}:task"


def test_a_manifest_of_adapters(tmp_path: Path) -> None:
    for step in (0, 8):
        save_adapter(tmp_path / f"step-{step:06d}", lora(), step)
    entries = [{"file": f"step-{step:06d}", "step": step, "progress": step / 8} for step in (0, 8)]
    content = {"format": 1, "task": None, "checkpoints": entries}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    trajectory, built = opened(tmp_path)
    assert trajectory.is_adapter
    verify_trajectory(trajectory, built)


def test_adapters_of_a_model_with_tied_weights_stay_apart(tmp_path: Path) -> None:
    config = lora(task_type="SEQ_2_SEQ_LM", target_modules=["q"], modules_to_save=["lm_head"])
    saved = save_adapter(tmp_path / "step-1", config, base=t5())
    trajectory, built = opened(tmp_path, T5_TASK)
    load_into(built, trajectory.checkpoints[0])
    found = adapter_values(built)
    assert any("lm_head" in name for name in found)
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_another_base_model_than_the_adapters_is_told(tmp_path: Path) -> None:
    """A model of the same shapes takes the adapter, and gives the scores of another one."""
    from transformers import AutoModelForSequenceClassification

    bases = {name: tmp_path / name for name in ("base", "other")}
    for place in bases.values():
        bert().save_pretrained(place)  # type: ignore[operator]

    def task(place: Path) -> Task:
        load = AutoModelForSequenceClassification.from_pretrained
        return Task(model=lambda: load(place), data=data, name="from-folder")

    runs = tmp_path / "run"
    save_adapter(runs / "step-1", lora(), 1, task(bases["base"]).build_base(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verify_trajectory(*opened(runs, task(bases["base"])))
    with pytest.warns(UserWarning, match=r"base', which the adapter .* loaded from .*other'; if"):
        verify_trajectory(*opened(runs, task(bases["other"])))
    with pytest.warns(UserWarning, match="found one that was not loaded from saved weights"):
        verify_trajectory(*opened(runs, TASK))
    told = [_bases(runs, one) for one in (task(bases["base"]), task(bases["other"]), TASK)]
    base, other = (str(place) for place in bases.values())
    assert told == [(base, None), (other, base), (None, base)]


def _bases(folder: Path, task: Task) -> tuple[str | None, str | None]:
    """Return the base models that ``run.json`` names: what was loaded, and another of adapters."""
    trajectory, built = opened(folder, task)
    told = describe_study(trajectory, task, Settings(("sgd",)), built, 8)
    return told.get("base_model"), told.get("adapters_base_model")
