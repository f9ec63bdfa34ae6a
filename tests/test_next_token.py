"""Labels of causal language models: shifted where they are to be, said where they are not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("peft")

import transformers

import evalkit
from evalkit import EvalkitError, Task, linearize, shifted_labels
from evalkit.bench.cost import measure_costs
from evalkit.callback import ScoreCallback
from evalkit.checkpoints import open_trajectory
from evalkit.settings import Settings
from evalkit.storage.run_folder import read_run
from evalkit.study.running import run_study
from evalkit.training.loop import train
from tests.support.dense import jacobian_rows
from tests.support.trainers import LENGTH, bert, gpt2, lora, prompted, tokens, trainer

WORDS = tokens(6, LENGTH)
LABELS = WORDS.clone()
LABELS[0, -2:] = -100
SETTINGS = Settings(methods=("sgd", "ief"), batches=1, batch_size=6)


def data() -> tuple[dict[str, Tensor], Tensor]:
    return {"input_ids": WORDS, "attention_mask": torch.ones_like(WORDS)}, LABELS


def by_hand(logits: Tensor) -> Tensor:
    """The losses (N,) of a causal language model, position by position."""
    chances = logits.log_softmax(-1)
    return torch.stack(
        [
            -sum(
                (
                    chances[n, t, LABELS[n, t + 1]]
                    for t in range(LENGTH - 1)
                    if LABELS[n, t + 1] >= 0
                ),
                torch.zeros(()),
            )
            for n in range(len(LABELS))
        ]
    )


def test_shifted_labels_give_the_loss_of_the_model_itself() -> None:
    model = gpt2().eval()
    inputs, labels = data()
    lin = linearize(model, inputs, shifted_labels(labels))
    count = int((shifted_labels(labels) != -100).sum())
    own = float(model(**inputs, labels=labels).loss.detach())
    assert count == 6 * (LENGTH - 1) - 2
    torch.testing.assert_close(float(lin.losses.sum()) / count, own, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        lin.losses.float(), by_hand(model(**inputs).logits), rtol=1e-5, atol=0
    )
    assert torch.equal(
        shifted_labels(labels, 3)[:, 2:], torch.cat((labels, labels * 0 - 100), 1)[:, :7]
    )


@pytest.mark.parametrize("labels", [[1, 2], torch.ones(3, 4), torch.ones(3, dtype=torch.int64)])
def test_what_cannot_be_shifted_is_refused(labels: Any) -> None:
    with pytest.raises(EvalkitError, match="expected a tensor of integers"):
        shifted_labels(labels)


def gamma_of_sgd(model: nn.Module) -> float:
    """sqrt(g^T F g) / g^T g from the Jacobian of all logits, in float64."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    logits = model(**data()[0]).logits
    jacobian = jacobian_rows(logits.flatten(), parameters).view(*logits.shape, -1)
    chances, gradient, metric = logits.softmax(-1).detach(), 0.0, 0.0
    places = [(n, t) for n in range(6) for t in range(LENGTH - 1) if LABELS[n, t + 1] >= 0]
    for n, t in places:
        residual = chances[n, t].clone()
        residual[LABELS[n, t + 1]] -= 1
        gradient = gradient + jacobian[n, t].T @ residual
    for n, t in places:
        moved = jacobian[n, t] @ gradient
        metric += (chances[n, t] * moved**2).sum() - (chances[n, t] * moved).sum() ** 2
    return float(metric.sqrt() / (gradient @ gradient))


def test_a_task_with_shift_is_scored_as_by_hand(tmp_path: Path) -> None:
    saved = gpt2().double()
    saved.save_pretrained(tmp_path / "run" / "step-1")
    task = Task(model=gpt2, data=data, name="words", shift_labels=True)
    settings = Settings(methods=("sgd", "ief"), batches=1, batch_size=6, dtype="float64")
    run_study(open_trajectory(tmp_path / "run"), task, settings, tmp_path / "out")
    found = read_run(tmp_path / "out").scores.set_index("method")
    expected = gamma_of_sgd(saved.eval())
    torch.testing.assert_close(float(found.loc["sgd", "gamma"]), expected, rtol=1e-6, atol=0)
    inputs, labels = data()
    hand = labels.new_full(labels.shape, -100)
    hand[:, :-1] = labels[:, 1:]
    table = evalkit.score(saved, inputs, hand, methods=("sgd", "ief")).set_index("method")
    for method in ("sgd", "ief"):
        torch.testing.assert_close(
            float(found.loc[method, "gamma"]), float(table.loc[method, "gamma"]), rtol=1e-6, atol=0
        )


def test_a_prompt_before_the_tokens_has_no_labels(tmp_path: Path) -> None:
    model = prompted(gpt2(), "CAUSAL_LM").eval()
    model.save_pretrained(tmp_path / "run" / "step-1")
    task = Task(model=gpt2, data=data, name="words", shift_labels=True)
    run_study(open_trajectory(tmp_path / "run"), task, SETTINGS, tmp_path / "out")
    inputs, labels = data()
    with torch.no_grad():
        own = float(model(**inputs, labels=labels).loss)
    # With a prompt the first token has a prediction too.
    total = float(read_run(tmp_path / "out").batches["loss"].iloc[0]) * 6
    torch.testing.assert_close(total / int((labels != -100).sum()), own, rtol=1e-5, atol=0)


def copying(**changes: Any) -> Task:
    return Task(model=gpt2, data=data, name="words", **changes)


def test_a_task_that_asks_for_its_own_input_is_refused(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "run" / "step-1")
    trajectory = open_trajectory(tmp_path / "run")
    uses = (
        lambda: run_study(trajectory, copying(), SETTINGS, tmp_path / "out"),
        lambda: train(copying(), folder=tmp_path / "trained", epochs=1, batch_size=6),
        lambda: measure_costs(copying(), SETTINGS),
    )
    for use in uses:
        with pytest.raises(
            EvalkitError, match=r"in task 'words'.*Task\(\.\.\., shift_labels=True\)"
        ):
            use()
    with pytest.warns(UserWarning, match="next token"):
        run_study(trajectory, copying(shift_labels=False), SETTINGS, tmp_path / "out")


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(EvalkitError, match="expected shift_labels to be True, False or None"):
        copying(shift_labels="yes")
    with pytest.raises(EvalkitError, match="expected shift_labels to be True, False or None"):
        ScoreCallback("run", shift_labels=2)


def test_linearize_says_that_a_model_is_asked_for_its_own_input() -> None:
    inputs, labels = data()
    adapted = lora(gpt2(), "CAUSAL_LM", "c_attn").eval()
    for model in (gpt2().eval(), adapted):
        with pytest.warns(UserWarning, match=r"GPT2LMHeadModel.*evalkit\.shifted_labels\(labels\)"):
            linearize(model, inputs, labels)
    assert "shift" in (evalkit.score.__doc__ or "")
    assert "shift" in (linearize.__doc__ or "")


def test_nothing_is_said_of_other_labels_or_models() -> None:
    inputs, labels = data()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        linearize(gpt2().eval(), inputs, shifted_labels(labels))
        linearize(bert("MaskedLM").eval(), inputs, labels)


class Sentences:
    """Tokens as a collator for language models leaves them: the labels are the input."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        words = torch.stack([feature["input_ids"] for feature in features])
        return {"input_ids": words, "labels": words.clone()}


def test_the_callback_shifts_as_the_loss_of_the_model(tmp_path: Path) -> None:
    scored = ScoreCallback(tmp_path / "run", ("sgd",), batches=1, batch_size=8)
    told = ScoreCallback(tmp_path / "told", ("sgd",), batches=1, batch_size=8, shift_labels=False)
    changes = {"data_collator": Sentences(), "max_steps": 1}
    made = trainer(tmp_path / "out", scored, told, model=gpt2(), **changes)
    with pytest.warns(UserWarning, match="next token"):  # of what was told
        made.train()
    runs = [read_run(tmp_path / name) for name in ("run", "told")]
    assert [run.provenance.get("shift_labels") for run in runs] == [True, None]
    losses = [float(run.batches["loss"].iloc[0]) for run in runs]
    assert losses[0] < losses[1]  # five positions are compared instead of six


def test_a_decoder_that_is_not_told_the_words_before(tmp_path: Path) -> None:
    """BART takes the tokens of its input instead, which no training does."""
    sizes = {"d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 30}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers = {"encoder_layers": 1, "decoder_layers": 1}

    def bart() -> nn.Module:
        torch.manual_seed(0)
        config = transformers.BartConfig(**sizes, **heads, **layers)
        return transformers.BartForConditionalGeneration(config)

    inputs, answers = {"input_ids": WORDS}, tokens(6, LENGTH).flip(0)
    model = bart().eval()
    with pytest.warns(UserWarning, match="'decoder_input_ids' among the inputs of BartForC"):
        linearize(model, inputs, answers)
    model.save_pretrained(tmp_path / "run" / "step-1")
    task = Task(model=bart, data=lambda: (inputs, answers), name="answers")
    with pytest.raises(EvalkitError, match="task 'answers': expected 'decoder_input_ids'"):
        run_study(open_trajectory(tmp_path / "run"), task, SETTINGS, tmp_path / "out")
    told = {**inputs, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(answers)}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = float(linearize(model, told, answers).losses.sum()) / answers.numel()
        linearize(model, inputs, WORDS)  # an autoencoder: what it makes is what was meant
    with torch.no_grad():
        expected = float(model(**inputs, labels=answers).loss)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
