"""The batches of a Trainer as samples: their targets give the loss that the model itself gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("peft")

from evalkit import EvalkitError, likelihoods
from evalkit.trainer_batches import supervised
from tests.trainers import LENGTH, WORDS, bert, gpt2, lora, prompted, t5, tokens


def with_gaps(labels: Tensor) -> Tensor:
    labels = labels.clone()
    labels[0, -2:] = -100
    return labels


CLASSES = torch.tensor([0, 2, 1, 1])
WORDS_OF = with_gaps(tokens(4, LENGTH))
ANSWERS = with_gaps(tokens(4, 4))
REAL = torch.tensor([0.5, -1.0, 0.0, 2.0])
FLAGS = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])

LOSSES: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "classes": (lambda: bert(num_labels=3), CLASSES, "categorical"),
    "classes, LoRA": (lambda: lora(bert(num_labels=3), "SEQ_CLS", "query"), CLASSES, "categorical"),
    "one real number": (lambda: bert(num_labels=1), REAL, "gaussian"),
    "one whole number": (lambda: bert(num_labels=1), CLASSES, "gaussian"),
    "flags": (lambda: bert(num_labels=3), FLAGS, "bernoulli"),
    "flags, told": (
        lambda: bert(num_labels=3, problem_type="multi_label_classification"),
        FLAGS,
        "bernoulli",
    ),
    "numbers, told": (lambda: bert(num_labels=3, problem_type="regression"), FLAGS, "gaussian"),
    "tokens": (lambda: bert("TokenClassification", num_labels=WORDS), WORDS_OF, "categorical"),
    "masked words": (lambda: bert("MaskedLM"), WORDS_OF, "categorical"),
    "T5": (t5, ANSWERS, "categorical"),
    "T5, LoRA": (lambda: lora(t5(), "SEQ_2_SEQ_LM", "q"), ANSWERS, "categorical"),
    "T5, prompt": (lambda: prompted(t5(), "SEQ_2_SEQ_LM"), ANSWERS, "categorical"),
    "GPT-2": (gpt2, WORDS_OF, "categorical"),
    "GPT-2, LoRA": (lambda: lora(gpt2(), "CAUSAL_LM", "c_attn"), WORDS_OF, "categorical"),
    "GPT-2, prompt": (lambda: prompted(gpt2(), "CAUSAL_LM"), WORDS_OF, "categorical"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOSSES)
def test_targets_give_the_loss_of_the_model_itself(name: str) -> None:
    build, labels, likelihood = LOSSES[name]
    model = build().eval()
    mask = torch.ones(4, LENGTH, dtype=torch.long)
    mask[0, -1] = 0
    batch = {"input_ids": tokens(4, LENGTH), "attention_mask": mask, "labels": labels}
    made = supervised(model, batch)
    assert made.likelihood == likelihood
    assert "labels" not in made.inputs
    with torch.no_grad():
        logits, expected = model(**made.inputs).logits, model(**batch).loss
    meaning = likelihoods.get(likelihood)
    targets = meaning.check(logits, made.targets)
    found = meaning.losses(logits, targets).sum() / int((targets != -100).sum())
    # transformers means the square of an error where the likelihood means half of it.
    factor = 2 if likelihood == "gaussian" else 1
    torch.testing.assert_close(float(factor * found), float(expected), rtol=1e-5, atol=0)


def test_a_batch_without_labels_is_refused() -> None:
    with pytest.raises(EvalkitError, match=r"'labels'.*found 'input_ids', 'start_positions'"):
        supervised(bert(), {"input_ids": tokens(4, 6), "start_positions": CLASSES})
