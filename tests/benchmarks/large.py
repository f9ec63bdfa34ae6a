"""Cost of four scores at N = 160 on the paper's large architectures, with random weights.

``python -m tests.benchmarks.large --device cuda``: T5-base with LoRA and with prompts, ViT-B/16
with LoRA. The paper (section 6) scores 100 batches of 160 samples for each checkpoint and damping
and reports 30 minutes of an A100 for it.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import evalkit
from evalkit.bench.memory import peak_mebibytes
from evalkit.bench.timing import seconds
from evalkit.evaluation.forward import forward
from evalkit.tasks.pretrained import with_lora, with_prompt
from tests.benchmarks.markdown import line, lines, machine
from tests.benchmarks.t5_base import SETTINGS

REPORT = Path(__file__).parents[2] / "reports" / "benchmarks-large.md"
SAMPLES, BATCHES = 160, 100
TOKENS, LABELS = 32, 3
"""Of a sentence of CoLA, and of its label as T5 writes it."""
CLASSES = 100
REPETITIONS = 3


@dataclass(frozen=True)
class Architecture:
    """A model with random weights and one random batch.

    Attributes:
        name: as the table shows it.
        build: returns the model and its inputs for so many samples.
        labels: the shape of a sample's targets, and how many classes they have.
    """

    name: str
    build: Callable[[int, torch.Generator], tuple[nn.Module, Any]]
    labels: tuple[tuple[int, ...], int]


def t5(adapter: Callable[[nn.Module], nn.Module]) -> Callable[..., tuple[nn.Module, Any]]:
    """Return how T5-base is built, with an adapter."""

    def build(samples: int, generator: torch.Generator) -> tuple[nn.Module, Any]:
        from transformers import T5Config, T5ForConditionalGeneration

        model = adapter(T5ForConditionalGeneration(T5Config.from_dict(SETTINGS)))
        vocabulary = SETTINGS["vocab_size"]
        tokens = torch.randint(1, vocabulary, (samples, TOKENS), generator=generator)
        started = torch.randint(1, vocabulary, (samples, LABELS), generator=generator)
        started[:, 0] = 0
        mask = torch.ones_like(tokens)
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        return model, dict(zip(names, (tokens, mask, started), strict=True))

    return build


def vit(samples: int, generator: torch.Generator) -> tuple[nn.Module, Any]:
    """Return ViT-B/16 with LoRA (Dosovitskiy et al., arXiv 2010.11929) and images."""
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig.from_dict({"num_labels": CLASSES}))
    images = torch.randn(samples, 3, 224, 224, generator=generator)
    return with_lora(model, None, bias="none", kept=("classifier",)), {"pixel_values": images}


def _with_lora(model: nn.Module) -> nn.Module:
    return with_lora(model, "SEQ_2_SEQ_LM", bias="none", kept=())


def _with_prompt(model: nn.Module) -> nn.Module:
    return with_prompt(model, "SEQ_2_SEQ_LM")


ARCHITECTURES = (
    Architecture("T5-base, LoRA", t5(_with_lora), ((LABELS,), SETTINGS["vocab_size"])),
    Architecture("T5-base, prompt", t5(_with_prompt), ((LABELS,), SETTINGS["vocab_size"])),
    Architecture("ViT-B/16, LoRA", vit, ((), CLASSES)),
)


def row(one: Architecture, device: str, size: int | None) -> str:
    """Return a line of the table: cost and memory of sgd, ef, ief, sf on a batch."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model, inputs = one.build(SAMPLES, generator)
    model = model.eval().to(device)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    shape, classes = one.labels
    targets = torch.randint(classes, (SAMPLES, *shape), generator=generator).to(device)

    def step() -> None:
        model.zero_grad()
        part = size or SAMPLES
        for start in range(0, SAMPLES, part):
            some = slice(start, start + part)
            logits = forward(model, {name: value[some] for name, value in inputs.items()})
            _loss(logits, targets[some]).backward()

    def score() -> None:
        evalkit.score(model, inputs, targets, micro_batch_size=size)

    step()
    score()
    steps = statistics.median(seconds(step) for _ in range(REPETITIONS))
    took = statistics.median(seconds(score) for _ in range(REPETITIONS))
    peak = peak_mebibytes(score, torch.device(device))
    trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return line(
        one.name,
        f"{trainable:,}",
        "whole" if size is None else str(size),
        f"{1e3 * steps:.0f}",
        f"{took:.2f}",
        f"{took / steps:.1f}",
        "" if peak is None else f"{peak / 1024:.1f}",
        f"{BATCHES * took / 60:.1f}",
    )


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")


def main() -> None:
    """Measure, print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--micro-batch-size", type=int, nargs="*", default=[0], help="0: whole")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    head = ("model", "trainable", "micro-batch", "step, ms", "four scores, s", "in steps")
    table = lines(*head, "peak, GiB", f"{BATCHES} batches, min")
    for one in ARCHITECTURES:
        for size in arguments.micro_batch_size:
            table += row(one, arguments.device, size or None)
            print(table.splitlines()[-1], flush=True)
            gc.collect()
            if arguments.device == "cuda":
                torch.cuda.empty_cache()
    text = (
        f"# Large architectures\n\n`python -m tests.benchmarks.large --device {arguments.device}` "
        f"measures this table: random weights, N = {SAMPLES}, sgd, ef, ief, sf at one damping,\n"
        f"medians of {REPETITIONS}; memory is the peak above model and batch.\n\n"
        f"{machine(arguments.device, 'transformers', 'peft')}\n\n{table}"
    )
    print(text)
    if arguments.write:
        REPORT.with_stem(f"{REPORT.stem}-{arguments.device}").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
