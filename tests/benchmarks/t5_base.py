"""Cost and memory of four scores on T5-base with random weights, the paper's architecture.

``python -m tests.benchmarks.t5_base ADAPTER DATA``: ``lora`` or ``prompt``, and GLUE by hub name
or path; ``make finetune`` brings the tokenizer.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time

import torch
from torch import nn

import evalkit
from evalkit.evaluation.forward import forward
from evalkit.tasks import load_task

SETTINGS = {
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_layers": 12,
    "num_heads": 12,
    "vocab_size": 32128,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
"""Of T5-base (Raffel et al., arXiv 1910.10683): 222.9 million parameters."""
TOKENIZER = "runs/models/minilm"
SAMPLES = 32


def main(adapter: str, data: str) -> None:
    """Measure and print."""
    from transformers import T5Config, T5ForConditionalGeneration

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        T5ForConditionalGeneration(T5Config.from_dict(SETTINGS)).save_pretrained(folder)
        settings = {"model": folder, "tokenizer": TOKENIZER, "data": data, "adapter": adapter}
        task = load_task("glue-cola", {**settings, "samples": 512})
        model = task.build_model(0).eval()
        inputs, targets = task.training_samples().take(slice(SAMPLES))

    def step() -> float:
        start = time.perf_counter()
        model.zero_grad()
        loss = nn.functional.cross_entropy(forward(model, inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        return time.perf_counter() - start

    step()
    costs = []
    for _ in range(3):
        before, start = step(), time.perf_counter()
        evalkit.score(model, inputs, targets)
        took = time.perf_counter() - start
        costs.append(2 * took / (before + step()))
    trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"T5-base, {adapter}: {trainable:,} trainable, N = {SAMPLES}, sgd, ef, ief, sf in "
        f"{statistics.median(costs):.2f} training steps, process at most {peak:.1f} GiB"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
