"""A step from given parameters is the dense reference's, in both interfaces."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evalkit import likelihoods, optim
from tests.support.cases import CASES
from tests.support.dense import assert_near, call
from tests.support.optim_reference import DIRECTIONS, Stepped, flat, formed, natural
from tests.support.table import Batch, Draw, initialise

OPTIMIZERS: dict[str, Any] = {
    "ief": optim.IEF,
    "ef": optim.EF,
    "fgn": optim.FGN,
    "polyak": optim.Polyak,
    "sf": optim.SF,
}
WEIGHTED = ("ief", "ef", "fgn", "polyak")
NAMES = (
    "least_squares",
    "mlp_categorical",
    "mlp_gaussian",
    "mlp_bernoulli",
    "missing_labels_bernoulli",
    "convolution_group_norm",
    "token_labels",
    "token_labels_bernoulli",
    "positions_gaussian",
    "attention_function_with_token_labels",
    "embedding_tied_by_function",
    "module_used_twice",
    "frozen_parameters",
    "low_rank_adapter",
    "layer_norm_of_features",
    "prompt_by_repeat",
    "weight_normalised",
    "unused_parameters",
    "dict_inputs_and_output_object",
)
SEED = 5
TOLERANCE = 1e-8


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [value for value in model.parameters() if value.requires_grad]


@dataclass(frozen=True)
class Before:
    """A batch before a step: the same forward, on a copy, with the numbers that are drawn next."""

    logits: Tensor
    parameters: list[nn.Parameter]
    batch: Batch

    @classmethod
    def of(cls, batch: Batch) -> Before:
        model, state = copy.deepcopy(batch.model), torch.get_rng_state()
        logits = call(model, batch.inputs)
        torch.set_rng_state(state)
        return cls(logits, trainable(model), batch)

    def direction(self, method: str, damping: float, drawn: Sequence[Tensor] = ()) -> Tensor:
        targets, likelihood = self.batch.targets, self.batch.likelihood
        terms = formed(self.logits, targets, self.parameters, likelihood, drawn)
        if method == "ngd":
            return natural(self.logits, self.parameters, terms, damping)
        return DIRECTIONS[method](terms, damping)


@contextmanager
def watched(likelihood: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Targets that are drawn from the model within the block."""
    kind = type(likelihoods.get(likelihood))
    drawn: list[Tensor] = []
    draw = kind.sample_targets

    def watching(self: Any, *arguments: Any) -> Tensor:
        drawn.append(draw(self, *arguments))
        return drawn[-1]

    with monkeypatch.context() as patch:
        patch.setattr(kind, "sample_targets", watching)
        yield drawn


def moved(batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
    """How far a step moves the trainable parameters, (P,)."""
    before = flat(trainable(batch.model))
    optimizer.step(lambda: (call(batch.model, batch.inputs), batch.targets))  # type: ignore[arg-type, return-value]
    return before - flat(trainable(batch.model))


def compared(batch: Batch, method: str, damping: float, **settings: Any) -> None:
    """Hold a step to the reference; its length is about that of the parameters."""
    expected = Before.of(batch).direction(method, damping)
    rate = float(flat(trainable(batch.model)).norm() / expected.norm())
    optimizer = OPTIMIZERS[method](
        batch.model.parameters(), rate, damping, batch.likelihood, **settings
    )
    assert_near(moved(batch, optimizer), rate * expected, TOLERANCE)


@pytest.mark.parametrize("damping", [1e-12, 1e-3])
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_the_dense_reference(name: str, damping: float) -> None:
    for method in WEIGHTED:
        compared(CASES[name].make(), method, damping)


@pytest.mark.parametrize("method", WEIGHTED)
@pytest.mark.parametrize(
    "name", ["mlp_bernoulli", "token_labels", "low_rank_adapter", "prompt_by_repeat"]
)
def test_the_gradient_of_the_weighted_loss_is_the_direction(name: str, method: str) -> None:
    batch = CASES[name].make()
    expected = Before.of(batch).direction(method, 1e-6)
    weighted = optim.WeightedLoss(batch.model, method, 1e-6, batch.likelihood)
    weighted(call(batch.model, batch.inputs), batch.targets).backward()
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trainable(batch.model)]
    assert_near(flat(grads), expected, TOLERANCE)


def test_weights_go_with_losses_of_the_callers_own() -> None:
    """sum_n w_n l_n for torch's own l_n, behind clipping and momentum of torch's SGD."""
    batch, twin = CASES["mlp_categorical"].make(), CASES["mlp_categorical"].make()
    weighted = optim.WeightedLoss(batch.model, "ief", 1e-6)
    behind = torch.optim.SGD(batch.model.parameters(), lr=0.5, momentum=0.9)
    whole = optim.IEF(twin.model.parameters(), 0.5, 1e-6, momentum=0.9)
    for _ in range(3):
        behind.zero_grad()
        logits = call(batch.model, batch.inputs)
        weights = weighted.weights(logits, batch.targets)
        losses = nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        (weights * losses).sum().backward()
        nn.utils.clip_grad_norm_(batch.model.parameters(), 1e6)
        behind.step()
        moved(twin, whole)
    assert_near(flat(trainable(batch.model)), flat(trainable(twin.model)), TOLERANCE)


@pytest.mark.parametrize("damping", [1e-3, 1e-1])
@pytest.mark.parametrize("name", ["mlp_categorical", "token_labels", "mlp_gaussian"])
def test_any_method_steps_along_its_direction_for_the_mean_loss(name: str, damping: float) -> None:
    batch = CASES[name].make()
    expected = Before.of(batch).direction("ngd", damping)
    rate = float(flat(trainable(batch.model)).norm() / expected.norm())
    optimizer = optim.Preconditioned(
        batch.model.parameters(), "ngd:solver=direct", rate, damping, batch.likelihood
    )
    assert_near(moved(batch, optimizer), rate * expected, TOLERANCE)


@pytest.mark.parametrize("damping", [1e-6, 1e-3])
@pytest.mark.parametrize(
    "name", ["mlp_categorical", "token_labels", "mlp_bernoulli", "mlp_gaussian"]
)
def test_sampled_steps_are_those_of_the_dense_reference(
    name: str, damping: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = CASES[name].make()
    before, rate = Before.of(batch), damping
    optimizer = optim.SF(batch.model.parameters(), rate, damping, batch.likelihood, seed=SEED)
    with watched(batch.likelihood, monkeypatch) as drawn:
        found = moved(batch, optimizer)
    assert len(drawn) == 1
    assert_near(found, rate * before.direction("sf", damping, drawn), TOLERANCE)


@pytest.mark.parametrize("method", OPTIMIZERS)
def test_settings_together_follow_the_formula(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps with length one, momentum, decay, and a rate for each of two groups."""
    batch = CASES["mlp_categorical"].make()
    layers = [list(batch.model[0].parameters()), list(batch.model[2:].parameters())]
    rates = torch.cat(
        [
            torch.full((value.numel(),), rate, dtype=torch.float64)
            for layer, rate in zip(layers, (0.3, 0.05), strict=True)
            for value in layer
        ]
    )
    rule = Stepped(rates, weight_decay=0.2, momentum=0.7, normalise=True)
    groups = [{"params": layers[0], "lr": 0.3}, {"params": layers[1]}]
    optimizer = OPTIMIZERS[method](
        groups, 0.05, 1e-6, normalise=True, weight_decay=0.2, momentum=0.7, seed=SEED
    )
    theta, labels = flat(trainable(batch.model)), []
    for _ in range(3):
        before = Before.of(batch)
        with watched("categorical", monkeypatch) as drawn:
            moved(batch, optimizer)
        theta = rule(theta, before.direction(method, 1e-6, drawn))
        assert_near(flat(trainable(batch.model)), theta, TOLERANCE)
        labels += drawn
    # Of every step anew.
    assert method != "sf" or not (labels[0] == labels[1]).all()


def random_masks(draw: Draw) -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.4), nn.Tanh(), nn.Linear(16, 3))
    return model, draw.normal(6, 5)


def attention_with_dropout(draw: Draw) -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.3, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3)), draw.normal(5, 3, 8)


def batch_statistics(draw: Draw) -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    return model, draw.normal(6, 5)


@pytest.mark.filterwarnings("ignore:samples influence each other")
@pytest.mark.parametrize("method", WEIGHTED)
@pytest.mark.parametrize("build", [random_masks, attention_with_dropout, batch_statistics])
def test_what_training_mode_draws_is_linearised(build: Any, method: str) -> None:
    """The reference runs the same forward: its masks, and losses that share batch statistics."""
    draw = Draw(1)
    model, inputs = build(draw)
    initialise(model, draw)
    batch = Batch(model.double().train(), inputs, draw.integers(3, len(inputs)), "categorical")
    torch.manual_seed(7)
    compared(batch, method, 1e-6)


@pytest.mark.filterwarnings("ignore:samples influence each other")
def test_a_mode_that_changes_is_seen() -> None:
    """Statistics that were fixed in the first step are those of the batch in the second."""
    draw = Draw(1)
    model, inputs = batch_statistics(draw)
    initialise(model, draw)
    batch = Batch(model.double().eval(), inputs, draw.integers(3, len(inputs)), "categorical")
    optimizer = optim.IEF(model.parameters(), 1.0, 1e-6)
    moved(batch, optimizer)
    model.train()
    expected = Before.of(batch).direction("ief", 1e-6)
    assert_near(moved(batch, optimizer), expected, TOLERANCE)
