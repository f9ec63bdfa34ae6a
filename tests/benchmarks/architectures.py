"""The paper's large architectures with random weights and random batches, in full and tiny.

T5-base with LoRA and with prompts (Raffel et al., arXiv 1910.10683), ViT-B/16 with LoRA
(Dosovitskiy et al., arXiv 2010.11929), from their configurations alone: nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.tasks.pretrained import with_lora, with_prompt
from tests.benchmarks.t5_base import SETTINGS

FULL, TINY = "full", "tiny"
SCALES = (FULL, TINY)

_TINY_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
_TINY_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Size:
    """How large a batch and the sizes of a model are.

    Attributes:
        samples: N; the paper's is 160.
        tokens: of a sentence of CoLA, with its instruction.
        labels: tokens of a label as T5 writes it.
        classes: of CIFAR100.
        image: the side of a picture.
        t5: the configuration of T5.
        vit: that of ViT.
    """

    samples: int
    tokens: int
    labels: int
    classes: int
    image: int
    t5: Mapping[str, Any]
    vit: Mapping[str, Any]


SIZES = {
    FULL: Size(160, 32, 3, 100, 224, SETTINGS, {}),
    TINY: Size(4, 4, 2, 5, 16, {**SETTINGS, **_TINY_T5}, _TINY_VIT),
}


@dataclass(frozen=True)
class Made:
    """A model in eval mode with one batch, on a device."""

    model: nn.Module
    inputs: dict[str, Tensor]
    targets: Tensor


@dataclass(frozen=True)
class Architecture:
    """A model with random weights and one random batch.

    Attributes:
        name: as tables show it.
        build: returns the model, its inputs, the shape of a sample's targets and their classes.
        layers: it has some whose weights are trained, as methods by layers need.
    """

    name: str
    build: Callable[
        [Size, torch.Generator], tuple[nn.Module, dict[str, Tensor], tuple[int, ...], int]
    ]
    layers: bool = True

    def make(self, scale: str, device: str) -> Made:
        """Return model and batch on a device, the same each time."""
        size, generator = SIZES[scale], torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, inputs, shape, classes = self.build(size, generator)
        targets = torch.randint(classes, (size.samples, *shape), generator=generator)
        there = {name: value.to(device) for name, value in inputs.items()}
        return Made(model.eval().to(device), there, targets.to(device))


def _t5(adapter: Callable[[nn.Module], nn.Module]) -> Callable[..., Any]:
    """Return how T5-base is built, with an adapter."""

    def build(size: Size, generator: torch.Generator) -> Any:
        from transformers import T5Config, T5ForConditionalGeneration

        model = adapter(T5ForConditionalGeneration(T5Config.from_dict(dict(size.t5))))
        words = int(size.t5["vocab_size"])
        tokens = torch.randint(1, words, (size.samples, size.tokens), generator=generator)
        started = torch.randint(1, words, (size.samples, size.labels), generator=generator)
        started[:, 0] = 0
        mask = torch.ones_like(tokens)
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        inputs = dict(zip(names, (tokens, mask, started), strict=True))
        return model, inputs, (size.labels,), words

    return build


def _vit(size: Size, generator: torch.Generator) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    given = {**size.vit, "num_labels": size.classes}
    model = ViTForImageClassification(ViTConfig.from_dict(given))
    images = torch.randn(size.samples, 3, size.image, size.image, generator=generator)
    # As the paper and the tasks have it: biases of the adapted layers are trained, and the head.
    adapted = with_lora(model, None, bias="lora_only", kept=("classifier",))
    return adapted, {"pixel_values": images}, (), size.classes


ARCHITECTURES = (
    Architecture(
        "T5-base, LoRA", _t5(lambda model: with_lora(model, "SEQ_2_SEQ_LM", bias="none", kept=()))
    ),
    Architecture(
        "T5-base, prompt", _t5(lambda model: with_prompt(model, "SEQ_2_SEQ_LM")), layers=False
    ),
    Architecture("ViT-B/16, LoRA", _vit),
)
