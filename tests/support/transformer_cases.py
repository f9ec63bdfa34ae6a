"""Tiny random transformers as users train them: LoRA, prompt tuning and full training.

``TRANSFORMERS[name].make()`` builds model, inputs and targets, every parameter drawn anew, so that
no adapter is the identity. Attention is the fused kernel that the library chooses by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from tests.support.table import Batch, Case, Draw

VOCABULARY = 11
SAMPLES = 7
LENGTH = 6
LABELS = 3
"""Label positions of an encoder-decoder model, and classes of a text classifier."""
VIRTUAL_TOKENS = 4
ALIKE = 4
"""Of every axis in the cases that try to confuse them."""
IGNORED = -100

TRANSFORMERS: dict[str, Case] = {}

Built = tuple[nn.Module, Any, Tensor]


def transformer(build: Callable[[Draw], Built]) -> Callable[[Draw], Built]:
    """Add the function as a case under its own name."""
    TRANSFORMERS[build.__name__] = Case(build.__name__, build, "categorical")
    return build


# --- models ----------------------------------------------------------------------------------


def t5() -> nn.Module:
    """Embeddings are tied to the head; both layers of a stack share one relative bias."""
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 10, "num_heads": 2}
    layers = {"num_layers": 2, "num_decoder_layers": 1, "relative_attention_num_buckets": 8}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, **sizes, **layers, decoder_start_token_id=0)
    )


def bert() -> nn.Module:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "max_position_embeddings": 16}
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_labels=LABELS,
            **sizes,
        )
    )


def gpt2() -> nn.Module:
    """The embedding is tied to the head; linear maps are the library's ``Conv1D``."""
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {"n_embd": 8, "n_inner": 12, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **tokens))


IMAGES = {"image_size": 8, "patch_size": 4, "num_channels": 2, "num_labels": 4}
ENCODER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


PROJECTIONS = ("q_proj", "v_proj", "query", "value")
"""Of models of pictures, as the present transformers calls them and as earlier ones do."""


def vit() -> nn.Module:
    return ViTForImageClassification(ViTConfig(**IMAGES, **ENCODER, intermediate_size=12))


def dinov2() -> nn.Module:
    return Dinov2ForImageClassification(Dinov2Config(**IMAGES, **ENCODER, mlp_ratio=2))


# --- ways of training ------------------------------------------------------------------------


def full(model: nn.Module) -> nn.Module:
    return model.eval()


def lora(model: nn.Module, *targets: str, **settings: Any) -> nn.Module:
    config = LoraConfig(
        r=2, lora_alpha=4, lora_dropout=0.1, target_modules=list(targets), **settings
    )
    return get_peft_model(model, config).eval()


def prompts(model: nn.Module, task_type: str, **settings: Any) -> nn.Module:
    config = PromptTuningConfig(task_type=task_type, num_virtual_tokens=VIRTUAL_TOKENS, **settings)
    return get_peft_model(model, config).eval()


# --- data ------------------------------------------------------------------------------------


def text(draw: Draw, samples: int = SAMPLES, length: int = LENGTH) -> dict[str, Tensor]:
    """Tokens of several lengths, the first of them without padding."""
    lengths = length - torch.arange(samples) % (length - 1)
    mask = (torch.arange(length) < lengths[:, None]).long()
    tokens = 1 + draw.integers(VOCABULARY - 1, samples, length)
    return {"input_ids": tokens * mask, "attention_mask": mask}


def classified(draw: Draw, samples: int = SAMPLES, length: int = LENGTH) -> tuple[Any, Tensor]:
    return text(draw, samples, length), draw.integers(LABELS, samples)


def translated(
    draw: Draw, samples: int = SAMPLES, length: int = LENGTH, labels: int = LABELS
) -> tuple[Any, Tensor]:
    """Labels of several lengths, and the decoder's inputs: the labels moved right by one."""
    lengths = labels - torch.arange(samples) % labels
    targets = 1 + draw.integers(VOCABULARY - 1, samples, labels)
    started = torch.cat([torch.zeros(samples, 1, dtype=torch.long), targets[:, :-1]], 1)
    targets[torch.arange(labels) >= lengths[:, None]] = IGNORED
    return text(draw, samples, length) | {"decoder_input_ids": started}, targets


def continued(
    draw: Draw, samples: int = SAMPLES, length: int = LENGTH, before: int = 0
) -> tuple[Any, Tensor]:
    """Each token's label is the next one; so many positions before the text have none."""
    inputs = text(draw, samples, length)
    following = inputs["input_ids"].roll(-1, 1)
    following[:, -1] = IGNORED
    following[following == 0] = IGNORED  # nothing follows but padding
    return inputs, torch.cat([torch.full((samples, before), IGNORED), following], 1)


def pictures(draw: Draw) -> tuple[Any, Tensor]:
    shape = (IMAGES["num_channels"], IMAGES["image_size"], IMAGES["image_size"])
    pixels = draw.normal(SAMPLES, *shape)
    return {"pixel_values": pixels}, draw.integers(IMAGES["num_labels"], SAMPLES)


def padded(batch: Batch, extra: int) -> Batch:
    """The same batch with so many more positions, which hold any token and count for nothing."""
    fill = {"input_ids": 3, "attention_mask": 0, "decoder_input_ids": 5}
    inputs = {name: longer(value, extra, fill[name]) for name, value in batch.inputs.items()}
    targets = batch.targets
    return batch._replace(
        inputs=inputs, targets=longer(targets, extra, IGNORED) if targets.dim() > 1 else targets
    )


def longer(values: Tensor, extra: int, fill: int) -> Tensor:
    return torch.cat([values, values.new_full((len(values), extra), fill)], 1)


# --- encoder and decoder ---------------------------------------------------------------------


@transformer
def t5_full(draw):
    return full(t5()), *translated(draw)


@transformer
def t5_lora(draw):
    return lora(t5(), "q", "v", task_type="SEQ_2_SEQ_LM"), *translated(draw)


@transformer
def t5_prompts(draw):
    model = prompts(t5(), "SEQ_2_SEQ_LM", num_transformer_submodules=1)
    return model, *translated(draw)


@transformer
def t5_full_with_axes_alike(draw):
    return full(t5()), *translated(draw, ALIKE, ALIKE, ALIKE)


@transformer
def t5_prompts_with_axes_alike(draw):
    model = prompts(t5(), "SEQ_2_SEQ_LM", num_transformer_submodules=1)
    return model, *translated(draw, ALIKE, ALIKE, ALIKE)


# --- text classification ---------------------------------------------------------------------


@transformer
def bert_full(draw):
    return full(bert()), *classified(draw)


@transformer
def bert_lora(draw):
    return lora(bert(), "query", "value", task_type="SEQ_CLS"), *classified(draw)


@transformer
def bert_lora_with_biases(draw):
    model = lora(bert(), "query", "value", task_type="SEQ_CLS", bias="lora_only")
    return model, *classified(draw)


@transformer
def bert_prompts(draw):
    return prompts(bert(), "SEQ_CLS"), *classified(draw)


@transformer
def bert_prompts_in_inference_mode(draw):
    """As an adapter loads that was saved so: its prompts are read without their embedding."""
    model = prompts(bert(), "SEQ_CLS", inference_mode=True)
    model.prompt_encoder.requires_grad_(True)
    return model, *classified(draw)


@transformer
def bert_full_with_axes_alike(draw):
    return full(bert()), *classified(draw, ALIKE, ALIKE)


@transformer
def bert_lora_with_axes_alike(draw):
    model = lora(bert(), "query", "value", task_type="SEQ_CLS")
    return model, *classified(draw, ALIKE, ALIKE)


@transformer
def bert_prompts_with_axes_alike(draw):
    return prompts(bert(), "SEQ_CLS"), *classified(draw, ALIKE, ALIKE)


# --- causal language models ------------------------------------------------------------------


@transformer
def gpt2_full(draw):
    return full(gpt2()), *continued(draw)


@transformer
def gpt2_lora(draw):
    model = lora(gpt2(), "c_attn", task_type="CAUSAL_LM", fan_in_fan_out=True)
    return model, *continued(draw)


@transformer
def gpt2_prompts(draw):
    """The virtual tokens come out of the model too, and have no labels."""
    return prompts(gpt2(), "CAUSAL_LM"), *continued(draw, before=VIRTUAL_TOKENS)


@transformer
def gpt2_full_with_axes_alike(draw):
    return full(gpt2()), *continued(draw, ALIKE, ALIKE)


@transformer
def gpt2_prompts_with_axes_alike(draw):
    return prompts(gpt2(), "CAUSAL_LM"), *continued(draw, ALIKE, ALIKE, before=VIRTUAL_TOKENS)


# --- images ----------------------------------------------------------------------------------


@transformer
def vit_full(draw):
    return full(vit()), *pictures(draw)


@transformer
def vit_lora_with_biases_and_classifier(draw):
    model = lora(vit(), *PROJECTIONS, bias="lora_only", modules_to_save=["classifier"])
    return model, *pictures(draw)


@transformer
def dinov2_full(draw):
    return full(dinov2()), *pictures(draw)


@transformer
def dinov2_lora(draw):
    return lora(dinov2(), *PROJECTIONS), *pictures(draw)
