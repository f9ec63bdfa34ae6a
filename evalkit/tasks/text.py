"""Text for models: classified by an encoder, or answered in words by an encoder-decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.errors import EvalkitError
from evalkit.evaluation.given import Inputs
from evalkit.likelihoods import IGNORED_LABEL
from evalkit.tasks.pretrained import (
    load_configuration,
    load_model,
    load_rows,
    load_tokenizer,
    with_lora,
    with_prompt,
)
from evalkit.tasks.wordings import Wording


@dataclass(frozen=True)
class Text:
    """A text task: which rows, which model, which adapter.

    Attributes:
        wording: the wording of the rows.
        configuration: the configuration of the data set.
        validation: the name of the validation split.
        model: hub name or path.
        data: the same of the data set.
        tokenizer: the same of the tokenizer; empty for that of the model.
        adapter: ``"lora"``, ``"prompt"`` or ``"none"``.
        instruction: before the sentences of text-to-text inputs.
        first_label_only: let only the first token of a label word count.
        samples: training samples, drawn at random; 0 for all.
        max_length: tokens of an input at most; the rest is cut off.
        validation_samples: samples to validate on at most, drawn at random; 0 for all.
    """

    wording: Wording
    configuration: str
    validation: str
    model: str
    data: str
    tokenizer: str
    adapter: str
    instruction: str
    first_label_only: bool
    samples: int
    max_length: int
    validation_samples: int

    @cached_property
    def _model_configuration(self) -> Any:
        return load_configuration(self.model)

    @property
    def is_text_to_text(self) -> bool:
        """Whether the model answers in words."""
        return bool(getattr(self._model_configuration, "is_encoder_decoder", False))

    def base(self) -> nn.Module:
        """Return the pretrained model, a new head included."""
        if self.is_text_to_text:
            return load_model("AutoModelForSeq2SeqLM", self.model)
        kind = "AutoModelForSequenceClassification"
        return load_model(kind, self.model, num_labels=len(self.wording.words))

    def adapted(self) -> nn.Module:
        """Return the pretrained model with a new adapter."""
        purpose = "SEQ_2_SEQ_LM" if self.is_text_to_text else "SEQ_CLS"
        if self.adapter == "lora":
            return with_lora(self.base(), purpose, bias="none", kept=())
        return with_prompt(self.base(), purpose)

    def training(self) -> tuple[Inputs, Tensor]:
        """Return the encoded training samples."""
        return self._encoded("train", self.samples)

    def validating(self) -> tuple[Inputs, Tensor]:
        """Return the encoded validation samples."""
        return self._encoded(self.validation, self.validation_samples)

    def _encoded(self, split: str, most: int) -> tuple[Inputs, Tensor]:
        in_words = self.is_text_to_text
        rows = load_rows(self.data, self.configuration, split, most)
        labels, columns = self._labels(rows), [list(rows[name]) for name in self.wording.columns]
        tokenizer = load_tokenizer(self.tokenizer or self.model)
        how = {
            "padding": True,
            "truncation": True,
            "max_length": self.max_length,
            "return_tensors": "pt",
        }
        if not in_words:
            return dict(tokenizer(*columns, **how)), torch.tensor(labels)
        texts = [
            self.wording.text(sentences, self.instruction)
            for sentences in zip(*columns, strict=True)
        ]
        inputs = dict(tokenizer(texts, **how))
        answers = self._answers(tokenizer, labels)
        return {**inputs, "decoder_input_ids": self._before(answers)}, answers

    def _labels(self, rows: Any) -> list[int]:
        missing = [name for name in (*self.wording.columns, "label") if name not in rows.features]
        if missing:
            raise EvalkitError(
                f"expected columns {', '.join((*self.wording.columns, 'label'))} in the data "
                f"'{self.data}', found no '{missing[0]}'; pass data with the columns of the hub"
            )
        labels = list(rows["label"])
        wrong = [label for label in labels if not 0 <= label < len(self.wording.words)]
        if wrong:
            raise EvalkitError(
                f"expected labels from 0 to {len(self.wording.words) - 1} in the data "
                f"'{self.data}', as many as the label words ({', '.join(self.wording.words)}), "
                f"found {wrong[0]}; pass data whose labels are known"
            )
        return labels

    def _answers(self, tokenizer: Any, labels: Sequence[int]) -> Tensor:
        """Return the tokens of the label words, (N, T), -100 behind their ends."""
        tokens = [tokenizer(text_target=word)["input_ids"] for word in self.wording.words]
        if self.first_label_only:
            tokens = [word[:1] for word in tokens]
        width = max(len(word) for word in tokens)
        table = torch.tensor([word + [IGNORED_LABEL] * (width - len(word)) for word in tokens])
        return table[torch.tensor(labels)]

    def _before(self, answers: Tensor) -> Tensor:
        """Return what the decoder has read before each token of the answers: (N, T)."""
        configuration = self._model_configuration
        start = torch.full((len(answers), 1), configuration.decoder_start_token_id)
        filled = answers.where(answers != IGNORED_LABEL, configuration.pad_token_id)
        return torch.cat([start, filled[:, :-1]], 1)


def trim(inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
    """Cut the padding that no sample of a batch needs, which changes no logit that counts.

    Args:
        inputs: as :class:`Text` encodes them, padded on the right.
        targets: labels (N,) or tokens (N, T).
    """
    assert isinstance(inputs, dict)
    width = int(inputs["attention_mask"].sum(1).max())
    answer = targets.shape[-1]
    if targets.dim() == 2:
        answer = int((targets != IGNORED_LABEL).sum(1).max())
        targets = targets[:, :answer]
    widths = {name: answer if name == "decoder_input_ids" else width for name in inputs}
    return {name: tensor[:, : widths[name]] for name, tensor in inputs.items()}, targets
