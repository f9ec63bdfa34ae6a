"""Write a T5-base with random weights: the paper's architecture where its weights are not at hand.

``python -m tests.benchmarks.random_t5 FOLDER``; then ``evalkit cost glue-cola --set model=FOLDER``.
"""

from __future__ import annotations

import sys

import torch

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


def main(folder: str) -> None:
    """Write model and configuration."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(**SETTINGS)).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
