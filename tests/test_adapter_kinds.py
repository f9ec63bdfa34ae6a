"""Every kind of adapter: loaded to the bit, and scored as the model that saved it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("peft")
pytest.importorskip("transformers")
# BOFT imports it, which fails below Python 3.12 once any library has looked for pip.
pytest.importorskip("setuptools")

import peft
import transformers

import evalkit
from evalkit.checkpoints import load_into, open_trajectory, verify_trajectory
from evalkit.checkpoints.adapter_kinds import SUPPORTED
from evalkit.settings import Settings
from evalkit.storage.run_folder import read_run
from evalkit.study.running import run_study
from evalkit.tasks import Task
from evalkit.tasks.task import seeded
from evalkit.training.loop import train
from tests.support.adapters import (
    TASK,
    adapted,
    bert,
    data,
    edit_config,
    lora,
    opened,
    prompts,
    t5,
    train_with_trainer,
)
from tests.support.trainers import gpt2

CLASSES, NEXT = {"task_type": "SEQ_CLS"}, {"task_type": "CAUSAL_LM"}
QUERIES = {"target_modules": ["query", "value"], **CLASSES}


def llama() -> nn.Module:
    """A causal language model whose heads share keys and values."""
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config)


def words() -> tuple[dict[str, Tensor], Tensor]:
    tokens = data()[0]["input_ids"].clamp(max=29)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, tokens


def answers() -> tuple[dict[str, Tensor], Tensor]:
    inputs, _ = data()
    return {**inputs, "decoder_input_ids": inputs["input_ids"][:, :2]}, inputs["input_ids"][:, 2:4]


GPT2 = Task(model=gpt2, data=words, name="gpt2", shift_labels=True)
LLAMA = Task(model=llama, data=words, name="llama", shift_labels=True)
T5 = Task(model=t5, data=answers, name="t5")

KINDS: dict[str, tuple[Task, Callable[[], Any]]] = {
    "LORA": (TASK, lambda: lora(use_dora=True)),
    "ADALORA": (
        TASK,
        lambda: peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, **QUERIES),
    ),
    "IA3": (
        TASK,
        lambda: peft.IA3Config(
            target_modules=["query", "output.dense"],
            feedforward_modules=["output.dense"],
            **CLASSES,
        ),
    ),
    "LOHA": (TASK, lambda: peft.LoHaConfig(r=2, **QUERIES)),
    "LOKR": (TASK, lambda: peft.LoKrConfig(r=2, decompose_both=True, **QUERIES)),
    "VERA": (TASK, lambda: peft.VeraConfig(r=4, **QUERIES)),
    "OFT": (TASK, lambda: peft.OFTConfig(oft_block_size=4, **QUERIES)),
    "BOFT": (
        TASK,
        lambda: peft.BOFTConfig(
            boft_block_size=4, boft_n_butterfly_factor=2, bias="boft_only", **QUERIES
        ),
    ),
    "HRA": (TASK, lambda: peft.HRAConfig(r=2, **QUERIES)),
    "LN_TUNING": (TASK, lambda: peft.LNTuningConfig(target_modules=["LayerNorm"], **CLASSES)),
    "PROMPT_TUNING": (TASK, prompts),
    "PREFIX_TUNING": (TASK, lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, **CLASSES)),
    "prefix on GPT-2": (GPT2, lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, **NEXT)),
    "prefix on Llama": (LLAMA, lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, **NEXT)),
    "prefix on T5": (
        T5,
        lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_2_SEQ_LM"),
    ),
    "prompt on GPT-2": (GPT2, lambda: prompts(**NEXT)),
}


def trained(task: Task, config: Any, name: str = "default", seed: int = 5) -> Any:
    """A model with an adapter of random values, as training would leave it."""
    with seeded(seed):
        base = task.build_base(0)
        model = peft.get_peft_model(base, config, adapter_name=name)
        with torch.no_grad():
            for value in model.parameters():
                if value.requires_grad:
                    value.add_(0.1 * torch.randn_like(value))
    return model.eval()


def assert_same(
    loaded: nn.Module, model: nn.Module, task: Task, name: str = "default", scored: bool = True
) -> None:
    """The same trainable parameters and logits, and if asked for scores, to the bit."""
    expected = {
        key.replace(f".{name}", ".default"): value
        for key, value in model.named_parameters()
        if value.requires_grad
    }
    found = {key: value for key, value in loaded.named_parameters() if value.requires_grad}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    inputs, targets = task.fit_labels(task.training_samples(), model).take(torch.arange(8))
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    if not scored:
        return
    tables = [
        evalkit.score(each, inputs, targets, methods=("sgd", "ief")) for each in (loaded, model)
    ]
    pd.testing.assert_frame_equal(*tables)


def test_every_supported_kind_is_tested() -> None:
    assert KINDS.keys() >= SUPPORTED.keys()
    for kind in SUPPORTED:
        assert KINDS[kind][1]().peft_type == kind


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_loaded_and_scored(tmp_path: Path, kind: str) -> None:
    task, config = KINDS[kind]
    models = [trained(task, config(), seed=seed) for seed in (5, 6)]
    for step, model in enumerate(models):
        model.save_pretrained(tmp_path / f"step-{step + 1}")
    trajectory, built = opened(tmp_path, task)
    verify_trajectory(trajectory, built)
    for checkpoint, model in zip(trajectory.checkpoints, models, strict=True):
        load_into(built, checkpoint)
        assert_same(built, model, task, scored=model is models[-1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LORA", "VERA", "PREFIX_TUNING", "LN_TUNING"])
def test_an_adapter_with_a_name_of_its_own(tmp_path: Path, kind: str) -> None:
    """PEFT saves it in a folder of its name; a task may call its own adapter anything."""
    task, config = KINDS[kind]
    model = trained(task, config(), name="mine")
    model.save_pretrained(tmp_path / "step-1")
    assert not (tmp_path / "step-1" / "adapter_config.json").exists()
    trajectory, built = opened(tmp_path, task)
    assert [item.name for item in trajectory.checkpoints] == ["step-1"]
    load_into(built, trajectory.checkpoints[0])
    assert_same(built, model, task, "mine")
    other = Task(model=lambda: trained(task, config(), name="other", seed=1), data=data, name="own")
    trajectory, built = opened(tmp_path, other)
    load_into(built, trajectory.checkpoints[0])
    assert built.active_adapter == "other"
    inputs, _ = data()
    with torch.no_grad():
        assert torch.equal(built(**inputs).logits, model(**inputs).logits)


def test_a_folder_that_is_one_named_adapter(tmp_path: Path) -> None:
    trained(TASK, lora(), name="mine").save_pretrained(tmp_path / "run")
    found = open_trajectory(tmp_path / "run").checkpoints
    assert [(item.name, item.progress) for item in found] == [("mine", 1.0)]


@pytest.mark.filterwarnings("ignore")
def test_a_run_of_the_trainer_with_a_named_adapter(tmp_path: Path) -> None:
    model = peft.get_peft_model(bert(), lora(), adapter_name="mine")
    train_with_trainer(model, tmp_path / "run")
    trajectory = open_trajectory(tmp_path / "run")
    found = [(item.name, item.progress) for item in trajectory.checkpoints]
    assert found == [("checkpoint-2", 0.5), ("checkpoint-4", 1.0)]
    run_study(trajectory, TASK, Settings(("sgd",), batches=1, batch_size=4), tmp_path / "out")
    assert len(read_run(tmp_path / "out").scores) == 2
    alone = open_trajectory(tmp_path / "run" / "checkpoint-2").checkpoints
    assert [(item.name, item.step, item.progress) for item in alone] == [("checkpoint-2", 2, 0.5)]


@pytest.mark.filterwarnings("ignore")
def test_projections_are_those_of_the_file(tmp_path: Path) -> None:
    """Another version of torch draws other projections from the same key."""
    task, config = KINDS["VERA"]
    model = trained(task, config())
    model.save_pretrained(tmp_path / "step-1")
    edit_config(tmp_path / "step-1", projection_prng_key=7)
    trajectory, built = opened(tmp_path, task)
    load_into(built, trajectory.checkpoints[0])
    assert_same(built, model, task)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["IA3", "OFT", "PREFIX_TUNING"])
def test_a_task_that_builds_another_adapter_of_the_kind(tmp_path: Path, kind: str) -> None:
    task, config = KINDS[kind]
    trained(task, config()).save_pretrained(tmp_path / "step-1")
    changes = {
        "IA3": ("feedforward_modules", ["query"]),
        "OFT": ("use_cayley_neumann", False),
        "PREFIX_TUNING": ("num_virtual_tokens", 4),
    }
    field, value = changes[kind]

    def other() -> nn.Module:
        changed = config()
        setattr(changed, field, value)
        return adapted(bert(), changed)

    trajectory = open_trajectory(tmp_path)
    with pytest.raises(evalkit.EvalkitError, match=f"with '{field}' "):
        opened(tmp_path, Task(model=other, data=data, name="own"))
    own = Task(model=lambda: adapted(bert(), config()), data=data, name="own")
    _, built = opened(tmp_path, own)
    verify_trajectory(trajectory, built)


@pytest.mark.filterwarnings("ignore")
def test_what_peft_does_not_save_in_full_is_scored_from_a_whole_state(tmp_path: Path) -> None:
    """The way out that the refusal of p-tuning names, and what ``evalkit train`` writes."""
    config = {"num_virtual_tokens": 3, "encoder_hidden_size": 8, **CLASSES}

    def build() -> nn.Module:
        return adapted(bert(), peft.PromptEncoderConfig(**config))

    task = Task(model=build, data=data, name="p-tuning")
    with seeded(3):
        model = build().eval()
    (tmp_path / "run").mkdir()
    torch.save(model.state_dict(), tmp_path / "run" / "step-1.pt")
    trajectory, built = opened(tmp_path / "run", task)
    load_into(built, trajectory.checkpoints[0])
    assert_same(built, model, task)
    made = train(task, folder=tmp_path / "trained", epochs=1, batch_size=12)
    assert not made.is_adapter
    run_study(made, task, Settings(("sgd",), batches=1, batch_size=4), tmp_path / "out")
    assert len(read_run(tmp_path / "out").scores) == len(made.checkpoints)
