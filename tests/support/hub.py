"""Small models, tokenizers and data sets in folders, as the hub has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from evalkit.tasks.task import seeded

REAL = Path(__file__).parents[3] / "shared" / "data"
"""Real data and models, where a machine has them."""

GLUE = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "qqp": ("question1", "question2"),
    "mrpc": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}
"""The columns of sentences, as the hub's ``nyu-mll/glue`` has them."""
ROWS, VALIDATION_ROWS = 24, 6
IMAGE_CLASSES = ("cat", "dog", "ship")
SIDE = 8
"""Of the pictures."""


def glue_rows(name: str, count: int) -> dict[str, list[Any]]:
    """Sentences of several lengths that say what they are; labels go round."""
    classes = 3 if name == "mnli" else 2
    rows: dict[str, list[Any]] = {
        column: [f"{column} of row {i}" + " and more" * (i % 4) for i in range(count)]
        for column in GLUE[name]
    }
    return {**rows, "label": [i % classes for i in range(count)], "idx": list(range(count))}


def save_rows(folder: Path, splits: dict[str, Any], features: Any = None, config: str = "") -> None:
    """Write the splits of a data set, or of one configuration of it, as parquet files."""
    from datasets import Dataset

    place = folder / config
    place.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        Dataset.from_dict(rows, features).to_parquet(place / f"{split}-00000-of-00001.parquet")


def describe(folder: Path, configurations: dict[str, Sequence[str]]) -> Path:
    """Write which files the splits of each configuration are in."""
    lines = ["---", "configs:"]
    for name, splits in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [f"  - {{split: {split}, path: {name}/{split}-*}}" for split in splits]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def save_glue(folder: Path) -> Path:
    """Write the seven tasks."""
    splits = {}
    for name in GLUE:
        validation = "validation_matched" if name == "mnli" else "validation"
        counts = {"train": ROWS, validation: VALIDATION_ROWS}
        rows = {split: glue_rows(name, count) for split, count in counts.items()}
        save_rows(folder, rows, config=name)
        splits[name] = list(counts)
    return describe(folder, splits)


def save_cola(folder: Path, **changes: list[Any]) -> Path:
    """Write CoLA alone, with other values in some columns; an empty column is left out."""
    rows = {**glue_rows("cola", ROWS), **changes}
    rows = {name: values for name, values in rows.items() if values}
    save_rows(folder, {"train": rows, "validation": rows}, config="cola")
    return describe(folder, {"cola": ["train", "validation"]})


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random pictures (count, \\*shape) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def save_pictures(
    folder: Path, train: Sequence[np.ndarray], column: str = "img", labels: str = "label"
) -> Path:
    """Write pictures, losslessly; their labels go round; four of other values for the test."""
    from datasets import ClassLabel, Features, Image
    from PIL import Image as Picture

    features = Features({column: Image(), labels: ClassLabel(names=list(IMAGE_CLASSES))})
    splits = {}
    for split, arrays in {"train": train, "test": pixels(4, SIDE, SIDE, 3, seed=1)}.items():
        numbers = [i % len(IMAGE_CLASSES) for i in range(len(arrays))]
        splits[split] = {column: [Picture.fromarray(a) for a in arrays], labels: numbers}
    save_rows(folder, splits, features)
    return folder


def save_tokenizer(folder: Path, template: str, special: Sequence[str], **names: Any) -> Any:
    """Train a byte-level tokenizer on the rows, save it and return it.

    Args:
        folder: where to.
        template: what is put around one text, ``$A``; around a pair where it holds ``$B`` too.
        special: the special tokens, in order.
        names: of transformers' ``PreTrainedTokenizerFast``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    texts = [text for name in GLUE for column in GLUE[name] for text in glue_rows(name, 8)[column]]
    tokenizer.train_from_iterator([*texts, "yes", "no"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template.split(" $B")[0],
        pair=template if "$B" in template else None,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in special],
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    made.save_pretrained(folder)
    return made


def save_bert(folder: Path) -> Path:
    """Write an encoder and its tokenizer."""
    from transformers import BertConfig, BertModel

    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    template = "[CLS] $A [SEP] $B:1 [SEP]:1"
    read = ["input_ids", "token_type_ids", "attention_mask"]
    names = {**special, "model_input_names": read}
    tokenizer = save_tokenizer(folder, template, list(special.values()), **names)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=160,
        pad_token_id=tokenizer.pad_token_id,
    )
    return save_model(BertModel, config, folder)


def save_t5(folder: Path) -> Path:
    """Write an encoder-decoder and its tokenizer."""
    from transformers import T5Config, T5ForConditionalGeneration

    special = {"pad_token": "<pad>", "eos_token": "</s>"}
    names = {**special, "model_input_names": ["input_ids", "attention_mask"]}
    tokenizer = save_tokenizer(folder, "$A </s>", list(special.values()), **names)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return save_model(T5ForConditionalGeneration, config, folder)


SMALL_IMAGES = {
    "image_size": SIDE,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def save_vit(folder: Path) -> Path:
    """Write a classifier of other pictures, of five classes."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**SMALL_IMAGES, intermediate_size=24, num_labels=5)
    return save_model(ViTForImageClassification, config, folder)


def save_dinov2(folder: Path) -> Path:
    """Write an encoder of pictures without a classifier."""
    from transformers import Dinov2Config, Dinov2Model

    return save_model(Dinov2Model, Dinov2Config(**SMALL_IMAGES, mlp_ratio=2), folder)


def save_model(kind: Any, config: Any, folder: Path) -> Path:
    """Write a model with random values."""
    import transformers

    from evalkit.quiet import quiet

    with seeded(0), quiet(transformers):
        model: nn.Module = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    return folder
