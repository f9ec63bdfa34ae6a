"""Tiny random transformers and adapters on them, saved by the libraries that users save with."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.checkpoints import Trajectory, open_trajectory, verify_trajectory
from evalkit.checkpoints.adapters import model_for
from evalkit.tasks import Task
from evalkit.tasks.task import seeded
from tests.support.folders import sentence

VOCABULARY = 40
POSITIONS = 6


def bert(hidden: int = 16) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return T5ForConditionalGeneration(config)


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    return ViTForImageClassification(config)


def data() -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (12, POSITIONS), generator=generator)
    labels = torch.randint(3, (12,), generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, labels


TASK = Task(model=bert, data=data, name="tiny-bert")
T5_TASK = Task(model=t5, data=data, name="tiny-t5")


def lora(**changes: Any) -> Any:
    import peft

    chosen = {"r": 2, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    return peft.LoraConfig(**{**chosen, **changes})


def prompts(**changes: Any) -> Any:
    import peft

    return peft.PromptTuningConfig(**{"num_virtual_tokens": 3, "task_type": "SEQ_CLS", **changes})


def adapted(base: nn.Module, config: Any) -> Any:
    """Return ``base`` with an adapter put on it by PEFT."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(base, config)


def adapter_values(model: Any) -> dict[str, Tensor]:
    """Return copies of the adapter's tensors, as PEFT names them."""
    import peft

    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def save_adapter(folder: Path, config: Any, seed: int = 0, base: nn.Module | None = None) -> Any:
    """Save an adapter with random values as PEFT does, and return its tensors."""
    with seeded(seed):
        model = adapted(bert() if base is None else base, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.1)
        model.save_pretrained(folder)
    return adapter_values(model)


def train_with_trainer(model: Any, folder: Path) -> Any:
    """Train a classifier of :func:`data` for 4 steps with the Trainer, saved after 2 and 4.

    Returns:
        The trained model.
    """
    from transformers import Trainer, TrainingArguments

    inputs, labels = data()
    rows = [
        {name: tensor[i] for name, tensor in {**inputs, "labels": labels}.items()}
        for i in range(len(labels))
    ]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=4,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(folder))
    return model


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def opened(folder: Path, task: Task = TASK) -> tuple[Trajectory, nn.Module]:
    trajectory = open_trajectory(folder)
    return trajectory, model_for(trajectory, task, 0)


def refused(folder: Path, task: Task = TASK) -> str:
    """The sentence with which a trajectory is refused before the first score."""

    def use() -> None:
        trajectory, built = opened(folder, task)
        verify_trajectory(trajectory, built)

    return sentence(use)
