"""Adapters that cannot be scored: each is refused in one sentence."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from evalkit.checkpoints import load_into, open_trajectory, verify_trajectory
from evalkit.extras import INSTALL
from evalkit.tasks import Task
from tests.support.adapters import (
    T5_TASK,
    adapted,
    bert,
    data,
    edit_config,
    lora,
    opened,
    prompts,
    refused,
    save_adapter,
)
from tests.support.folders import model, save, sentence, values


@pytest.mark.parametrize(
    ("saved", "built", "field"),
    [
        (lambda: lora(), lambda: lora(r=4), "'r' 2, found 4"),
        (lambda: lora(), lambda: lora(lora_alpha=99), "'lora_alpha' 8, found 99"),
        (lambda: lora(), lambda: lora(bias="all"), "'bias' none, found all"),
        (lambda: lora(), lambda: lora(target_modules=["key"]), "query, value, found key"),
        (lambda: lora(), lambda: prompts(), "'peft_type' LORA, found PROMPT_TUNING"),
        (lambda: prompts(), lambda: prompts(num_virtual_tokens=4), "tokens' 3, found 4"),
    ],
)
def test_a_task_that_builds_another_adapter(
    tmp_path: Path, saved: Any, built: Any, field: str
) -> None:
    save_adapter(tmp_path / "step-1", saved())
    text = refused(tmp_path, Task(model=lambda: adapted(bert(), built()), data=data, name="own"))
    assert field in text
    assert "task 'own'" in text


def test_a_task_with_an_adapter_further_inside(tmp_path: Path) -> None:
    save_adapter(tmp_path / "step-1", lora())
    task = Task(model=lambda: nn.Sequential(adapted(bert(), lora())), data=data, name="own")
    assert "an adapter inside Sequential; return the PeftModel itself" in refused(tmp_path, task)


@pytest.mark.parametrize(
    ("config", "task", "expected"),
    [
        (lora, T5_TASK, "found T5ForConditionalGeneration (NoMatching"),
        (lora, Task(model=model, data=data, name="plain"), "found Sequential"),
        (prompts, Task(model=model, data=data, name="plain"), "found Sequential"),
        (lora, Task(model=lambda: bert(8), data=data, name="small"), "expected shape (2, 8)"),
        (prompts, Task(model=lambda: bert(8), data=data, name="small"), "expected shape"),
        (prompts, T5_TASK, "unexpected 2"),
    ],
)
def test_another_base_model(tmp_path: Path, config: Any, task: Task, expected: str) -> None:
    save_adapter(tmp_path / "step-1", config())
    edit_config(tmp_path / "step-1", base_model_name_or_path="some/base")
    text = refused(tmp_path, task)
    assert expected in text
    assert "belongs to base model 'some/base' according to its adapter_config.json" in text
    edit_config(tmp_path / "step-1", base_model_name_or_path=None)
    assert "names no base model" in refused(tmp_path, task)


def test_an_unsupported_kind(tmp_path: Path) -> None:
    import peft

    config = peft.ShiraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    save_adapter(tmp_path / "step-1", config)
    text = refused(tmp_path)
    assert "a supported kind (LORA, ADALORA, IA3, " in text
    assert "found SHIRA" in text
    assert "ScoreCallback" in text
    assert str(tmp_path / "step-1") in text


def _incomplete() -> dict[str, tuple[Callable[[], Any], str]]:
    import peft

    prompts = {"num_virtual_tokens": 3, "task_type": "SEQ_CLS", "encoder_hidden_size": 8}
    return {
        "p-tuning": (lambda: peft.PromptEncoderConfig(**prompts), "found p-tuning"),
        "projected prefix": (
            lambda: peft.PrefixTuningConfig(**prompts, prefix_projection=True),
            "found 'prefix_projection'",
        ),
        "projections that are not saved": (
            lambda: peft.VeraConfig(
                r=4, target_modules=["query"], task_type="SEQ_CLS", save_projection=False
            ),
            "set save_projection=True and save it again",
        ),
        "a start by random numbers": (
            lambda: lora(init_lora_weights="pissa_niter_4"),
            "found init_lora_weights 'pissa_niter_4'",
        ),
    }


@pytest.mark.parametrize("kind", _incomplete())
def test_an_adapter_that_is_not_saved_in_full(tmp_path: Path, kind: str) -> None:
    config, expected = _incomplete()[kind]
    save_adapter(tmp_path / "step-1", config())
    text = refused(tmp_path)
    assert expected in text
    assert str(tmp_path / "step-1") in text


def test_ranks_that_adalora_pruned(tmp_path: Path) -> None:
    """What was pruned is not saved, though it was trained; a pattern may prune nothing."""
    import peft

    for step, pruned in ((1, False), (2, True)):
        config = peft.AdaLoraConfig(
            init_r=4, target_r=2, total_step=10, target_modules=["query"], task_type="SEQ_CLS"
        )
        built = adapted(bert(), config)
        names = [name for name, _ in built.named_parameters() if "lora_E" in name]
        keys = [name.removeprefix("base_model.model.") for name in names]
        config.rank_pattern = {key: [True, True, True, not pruned] for key in keys}
        built.save_pretrained(tmp_path / f"step-{step}")
    assert "found ranks pruned by 'rank_pattern'" in refused(tmp_path)
    shutil.rmtree(tmp_path / "step-2")
    trajectory, built = opened(tmp_path)
    verify_trajectory(trajectory, built)


def test_parameters_that_the_adapter_does_not_hold(tmp_path: Path) -> None:
    save_adapter(tmp_path / "step-1", lora())

    def with_more() -> nn.Module:
        built = adapted(bert(), lora())
        built.get_submodule("base_model.model.bert.pooler").requires_grad_(True)
        return built

    text = refused(tmp_path, Task(model=with_more, data=data, name="own"))
    assert "found none of 2 ('base_model.model.bert.pooler.dense.weight'" in text
    assert "freeze them in the task" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [("merge_adapter", "merged into its base"), ("disable_adapter_layers", "switched off")],
)
def test_an_adapter_that_is_not_applied(tmp_path: Path, change: str, expected: str) -> None:
    """Loaded values would change nothing that the model computes."""
    save_adapter(tmp_path / "step-1", lora())

    def build() -> nn.Module:
        built = adapted(bert(), lora())
        getattr(built.base_model, change)()
        return built

    assert expected in refused(tmp_path, Task(model=build, data=data, name="own"))


def test_several_adapters_in_one_checkpoint(tmp_path: Path) -> None:
    """PEFT saves all of them, and does not say which was in use."""
    built = adapted(bert(), lora())
    built.add_adapter("second", lora())
    built.save_pretrained(tmp_path / "step-1")
    text = refused(tmp_path)
    assert "found 2 (default, second)" in text
    assert "move the folders of all but one elsewhere" in text
    shutil.rmtree(tmp_path / "step-1" / "second")
    trajectory, model = opened(tmp_path)
    verify_trajectory(trajectory, model)


def test_adapters_of_different_runs(tmp_path: Path) -> None:
    save_adapter(tmp_path / "step-1", lora())
    save_adapter(tmp_path / "step-2", lora(lora_alpha=99))
    text = refused(tmp_path)
    assert "found 'lora_alpha' 99" in text
    assert str(tmp_path / "step-2") in text
    save_adapter(tmp_path / "step-2", prompts())
    assert "alike" in refused(tmp_path)


def test_a_configuration_never_names_code_to_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "named_by_adapter.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    save_adapter(tmp_path / "run" / "step-1", lora())
    edit_config(
        tmp_path / "run" / "step-1", megatron_config={"a": 1}, megatron_core="named_by_adapter"
    )
    assert "found 'megatron_config'" in refused(tmp_path / "run")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "expected JSON"),
        ("[1]", "a JSON object"),
        ("{}", "'peft_type'"),
        ('{"peft_type": 3}', "'peft_type'"),
        ('{"peft_type": "LORA", "base_model_name_or_path": 3}', "'base_model_name_or_path'"),
        ('{"peft_type": "LORA", "task_type": "NO_SUCH"}', "that PEFT can read"),
        ('{"peft_type": "LORA", "r": "x", "target_modules": ["query"]}', "to take the adapter"),
        ('{"peft_type": "LORA", "r": -1, "target_modules": ["query"]}', "to take the adapter"),
    ],
)
def test_a_damaged_configuration(tmp_path: Path, text: str, expected: str) -> None:
    save_adapter(tmp_path / "step-1", lora())
    (tmp_path / "step-1" / "adapter_config.json").write_text(text)
    found = refused(tmp_path)
    assert expected in found
    assert str(tmp_path / "step-1") in found


def test_parts_of_an_adapter_that_are_missing(tmp_path: Path) -> None:
    save_adapter(tmp_path / "step-1", lora())
    config, weights = (
        tmp_path / "step-1" / name for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    kept = config.read_bytes()
    config.unlink()
    assert f"'adapter_config.json' beside '{weights}'" in refused(tmp_path)
    config.write_bytes(kept)
    weights.unlink()
    assert f"the weights of an adapter beside '{config}'" in refused(tmp_path)


def test_damaged_weights_change_nothing(tmp_path: Path) -> None:
    save_adapter(tmp_path / "step-1", lora())
    weights = tmp_path / "step-1" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    trajectory, built = opened(tmp_path)
    before = values(built)
    name = next(iter(tensors))
    save(weights, {**tensors, name: tensors[name] * torch.nan})
    assert "SHA-256" in sentence(lambda: load_into(built, trajectory.checkpoints[0]))
    changed = open_trajectory(tmp_path).checkpoints[0]
    assert "expected finite values" in sentence(lambda: load_into(built, changed))
    save(weights, {**tensors, "other": tensors[name].clone()})
    changed = open_trajectory(tmp_path).checkpoints[0]
    assert "unexpected 1 ('other')" in sentence(lambda: load_into(built, changed))
    assert torch.equal(values(built), before)


def test_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_adapter(tmp_path / "step-1", lora())
    monkeypatch.setitem(sys.modules, "peft", None)  # what an absent package looks like to import
    assert INSTALL.format(extra="hf") in refused(tmp_path)


def test_adapters_need_a_model_that_carries_one(tmp_path: Path) -> None:
    save_adapter(tmp_path / "step-1", lora())
    trajectory = open_trajectory(tmp_path)
    text = sentence(lambda: verify_trajectory(trajectory, bert()))
    assert "found BertForSequenceClassification" in text


def test_an_adapter_whose_start_changed_the_base_model(tmp_path: Path) -> None:
    """PiSSA takes the principal part out of the weights, which another LoRA leaves in."""
    task = Task(model=lambda: adapted(bert(), lora()), data=data)
    save_adapter(tmp_path / "step-1", lora(init_lora_weights="pissa"))
    assert "'init_lora_weights' pissa" in refused(tmp_path, task)
