"""Tiny random models and the Trainer on them, for the tests of what watches a training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from torch import Tensor, nn

from evalkit.callback import ScoreCallback

METHODS = ("sgd", "ef", "ief", "sf")
WORDS, LENGTH, SAMPLES = 30, 6, 24


def bert(kind: str = "SequenceClassification", **config: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
    chosen = transformers.BertConfig(
        vocab_size=WORDS, num_hidden_layers=1, max_position_embeddings=16, **sizes, **config
    )
    return getattr(transformers, f"BertFor{kind}")(chosen)


def t5() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(vocab_size=WORDS, decoder_start_token_id=0, **sizes)
    return transformers.T5ForConditionalGeneration(config)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_inner": 12, "n_layer": 1, "n_head": 2, "n_positions": 16}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=WORDS, **sizes))


def lora(model: nn.Module, kind: str, *names: str) -> nn.Module:
    config = peft.LoraConfig(task_type=kind, r=2, lora_dropout=0.1, target_modules=list(names))
    return peft.get_peft_model(model, config)


def prompted(model: nn.Module, kind: str) -> nn.Module:
    config = peft.PromptTuningConfig(task_type=kind, num_virtual_tokens=3)
    return peft.get_peft_model(model, config)


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, WORDS, shape, generator=torch.Generator().manual_seed(1))


def samples() -> list[dict[str, Any]]:
    words = tokens(SAMPLES, LENGTH)
    return [{"input_ids": row, "labels": int(row.sum()) % 3} for row in words]


class Masking:
    """Hides words as augmentation does, by every generator that a collator may draw from."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        words = torch.stack([feature["input_ids"] for feature in features])
        hidden = torch.rand(words.shape, generator=self.generator) < 0.2
        hidden |= torch.from_numpy(np.random.rand(*words.shape) < 0.2)  # noqa: NPY002
        hidden |= torch.rand(words.shape) < random.random() / 5
        labels = torch.tensor([feature["labels"] for feature in features])
        return {"input_ids": words.masked_fill(hidden, 0), "labels": labels}


def adapted() -> nn.Module:
    return lora(bert(num_labels=3), "SEQ_CLS", "query", "value")


def trainer(
    out: Path, *callbacks: Any, model: nn.Module | None = None, **changes: Any
) -> transformers.Trainer:
    collator = changes.pop("data_collator", None) or Masking()
    arguments: dict[str, Any] = {
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "report_to": [],
        "logging_strategy": "no",
        **changes,
    }
    chosen = transformers.TrainingArguments(
        output_dir=str(out),
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
        **arguments,
    )
    return transformers.Trainer(
        model=adapted() if model is None else model,
        args=chosen,
        train_dataset=samples(),
        data_collator=collator,
        callbacks=list(callbacks),
    )


def scorer(folder: Path, **changes: Any) -> ScoreCallback:
    return ScoreCallback(folder, METHODS, **{"batches": 2, "batch_size": 8, **changes})
