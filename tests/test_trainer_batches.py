"""The batches of a Trainer as samples: their targets give the loss that the model itself gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("peft")

import transformers
from transformers.modeling_outputs import CausalLMOutput

from evalkit import EvalkitError, likelihoods
from evalkit.callback.trainer_batches import shifts_labels, supervised
from tests.support.trainers import LENGTH, WORDS, bert, gpt2, lora, prompted, t5, tokens


def with_gaps(labels: Tensor) -> Tensor:
    labels = labels.clone()
    labels[0, -2:] = -100
    return labels


def bart() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 8, "decoder_ffn_dim": 12, "decoder_layers": 1, "decoder_attention_heads": 2}
    config = transformers.BartConfig(vocab_size=WORDS, is_encoder_decoder=False, **sizes)
    return transformers.BartForCausalLM(config)


def xlnet() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_inner": 12, "n_layer": 1, "n_head": 2}
    return transformers.XLNetLMHeadModel(transformers.XLNetConfig(vocab_size=WORDS, **sizes))


class Own(nn.Module):
    """A model of no library, whose loss moves the labels to the left or not."""

    def __init__(self, shift: int, factor: float = 1.0, extra: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shift, self.factor, self.extra = shift, factor, extra
        self.words, self.head = nn.Embedding(WORDS, 4), nn.Linear(4, WORDS)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> Any:
        logits, loss = self.head(self.words(input_ids)), None
        if labels is not None:
            end = labels.shape[1] - self.shift
            pair = logits[:, :end].flatten(0, 1), labels[:, self.shift :].flatten()
            loss = self.factor * nn.functional.cross_entropy(*pair) + self.extra
        return CausalLMOutput(loss=loss, logits=logits)


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
    # Named as causal language models, but their losses do not shift.
    "BART, decoder": (bart, WORDS_OF, "categorical"),
    "BART, decoder, prompt": (lambda: prompted(bart(), "CAUSAL_LM"), WORDS_OF, "categorical"),
    "XLNet": (xlnet, WORDS_OF, "categorical"),
    "own, shifted": (lambda: Own(1), WORDS_OF, "categorical"),
    "own, as they are": (lambda: Own(0), WORDS_OF, "categorical"),
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


def words(**others: Any) -> dict[str, Any]:
    return {"input_ids": tokens(4, LENGTH), "labels": WORDS_OF, **others}


def test_asking_for_the_loss_leaves_the_model_as_it_was() -> None:
    model = lora(gpt2(), "CAUSAL_LM", "c_attn").train()
    before = torch.get_rng_state()
    assert shifts_labels(model, words())
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(value.grad is None for value in model.parameters())


def test_an_auxiliary_loss_is_said_and_the_class_decides() -> None:
    model = gpt2().eval()
    plain = model.forward

    def with_more(**inputs: Any) -> Any:
        output = plain(**inputs)
        output.loss = None if output.loss is None else output.loss + 1
        return output

    model.forward = with_more  # type: ignore[method-assign]
    with pytest.warns(
        UserWarning, match=r"the loss of the next tokens, [\d.]+, of GPT2LMHeadModel"
    ):
        assert shifts_labels(model, words())


def test_a_loss_that_does_not_tell_is_refused_unless_told() -> None:
    model = Own(1, factor=2.0)
    with pytest.raises(EvalkitError, match=r"found the loss .* of Own, not .*shift_labels=True"):
        shifts_labels(model, words())
    made = supervised(model, words(), shift_labels=True)
    assert torch.equal(made.targets[:, :-1], WORDS_OF[:, 1:])
    assert torch.equal(supervised(model, words(), shift_labels=False).targets, WORDS_OF)
    with pytest.raises(EvalkitError, match="found no loss of Embedding"):
        shifts_labels(nn.Embedding(WORDS, WORDS), words())
