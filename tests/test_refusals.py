"""What the engine refuses, in one sentence that names the culprit and the way out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evalkit
from tests.support import dense
from tests.support.cases import CASES, Batch, Draw, Net
from tests.support.refusals import refusal
from tests.support.table import Counter


def data(likelihood: str = "categorical") -> tuple[Tensor, Tensor]:
    draw = Draw(0)
    x = draw.normal(6, 4)
    return x, draw.integers(3, 6) if likelihood == "categorical" else draw.normal(6, 3)


def sandwich(culprit: nn.Module) -> nn.Module:
    """A small model with ``culprit`` at ``block.culprit``, and a buffer that forwards change."""
    first = nn.Sequential(Counter(), nn.Linear(4, 6))
    block = Net(lambda net, x: net.culprit(net.first(x)), first=first, culprit=culprit)
    return Net(lambda net, x: net.out(net.block(x)), block=block, out=nn.Linear(6, 3)).double()


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class Attention(nn.Module):
    """Self-attention over one position with dropout on its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.unsqueeze(1), x.unsqueeze(1), x.unsqueeze(1))[0].squeeze(1)


CULPRITS = {
    "dropout": nn.Dropout(0.5),
    "alpha dropout": nn.AlphaDropout(0.5),
    "batch norm": nn.BatchNorm1d(6),
    "batch norm without running statistics": nn.BatchNorm1d(6, track_running_stats=False),
    "randomized activation": nn.RReLU(),
    "noise": Noise(),
    "functional dropout": FunctionalDropout(),
    "attention dropout": Attention(),
}


@pytest.mark.parametrize("kind", CULPRITS)
def test_forward_that_is_not_a_function_of_the_sample_is_refused(kind: str) -> None:
    model = sandwich(CULPRITS[kind]).train()
    buffers = [buffer.clone() for buffer in model.buffers()]
    random_state = torch.get_rng_state()
    for action in (evalkit.linearize, evalkit.score):
        assert "block.culprit" in refusal(lambda action=action: action(model, *data()))
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training


@pytest.mark.parametrize("kind", ["dropout", "alpha dropout", "batch norm", "attention dropout"])
def test_the_same_modules_are_accepted_in_eval_mode(kind: str) -> None:
    model = sandwich(CULPRITS[kind]).eval()
    assert evalkit.linearize(model, *data()).num_samples == 6


@pytest.mark.parametrize("module", [nn.Dropout(0.0), nn.Identity(), nn.GroupNorm(1, 6)])
def test_harmless_modules_in_train_mode_are_accepted(module: nn.Module) -> None:
    model = Net(
        lambda net, x: net.out(net.middle(net.first(x))),
        first=nn.Linear(4, 6),
        middle=module,
        out=nn.Linear(6, 3),
    ).train()
    batch = Batch(model.double(), Draw(0).normal(5, 4), Draw(1).integers(3, 5), "categorical")
    lin = evalkit.linearize(*batch)
    torch.testing.assert_close(lin.gram, dense.dense(*batch).gram)


def test_noise_in_the_outermost_module_is_refused() -> None:
    model = Net(lambda net, x: net.out(x + torch.randn_like(x)), out=nn.Linear(4, 3)).double()
    assert "the model itself (Net)" in refusal(lambda: evalkit.linearize(model, *data()))


def labels(change: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
    """Linearize the categorical MLP with changed labels."""
    batch = CASES["mlp_categorical"].make()
    return lambda: evalkit.linearize(batch.model, batch.inputs, change(batch.targets))


def replaced(index: int, value: float) -> Callable[[Tensor], Tensor]:
    return lambda targets: targets.index_fill(0, torch.tensor([index]), value)


def regression(targets: Tensor) -> Callable[[], Any]:
    batch = CASES["least_squares"].make()
    return lambda: evalkit.linearize(batch.model, batch.inputs, targets, "gaussian")


def two_outputs(targets: Tensor) -> Callable[[], Any]:
    batch = CASES["mlp_gaussian"].make()
    return lambda: evalkit.linearize(batch.model, batch.inputs, targets, "gaussian")


def yes_or_no(value: float) -> Callable[[], Any]:
    batch = CASES["mlp_bernoulli"].make()
    targets = batch.targets.index_fill(0, torch.tensor([1]), value)
    return lambda: evalkit.linearize(batch.model, batch.inputs, targets, "bernoulli")


TARGETS = {
    "a sample without a label": (labels(replaced(2, -100)), "only -100 in sample 2 "),
    "too few": (labels(lambda targets: targets[:-1]), "5 samples on axis 0"),
    "too many": (labels(lambda targets: torch.cat([targets, targets])), "12 samples on axis 0"),
    "floating point": (labels(lambda targets: targets.double()), "integer class targets"),
    "one-hot": (labels(lambda targets: F.one_hot(targets, 4)), "classes last"),
    "label equal to the number of classes": (labels(replaced(0, 4)), "found 4;"),
    "negative label": (labels(replaced(0, -1)), "found -1;"),
    "gaussian that would broadcast": (
        regression(torch.zeros(1, 5).double()),
        "1 sample on axis 0",
    ),
    "gaussian of one width for two": (
        two_outputs(torch.zeros(6, 1).double()),
        "logits, (6, 2)",
    ),
    "gaussian with NaN": (regression(torch.full((5, 1), math.nan).double()), "finite targets"),
    "gaussian of another width": (
        regression(torch.zeros(5, 2).double()),
        "logits, (5, 1)",
    ),
    "bernoulli beyond one": (yes_or_no(2.0), "between 0 and 1"),
    "bernoulli with NaN": (yes_or_no(math.nan), "finite targets"),
    "bernoulli sample without a label": (yes_or_no(-100.0), "only -100 in sample 1 "),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_unusable_targets_are_refused(kind: str) -> None:
    action, word = TARGETS[kind]
    assert word in refusal(action)


def test_a_column_of_targets_may_be_given_flat() -> None:
    batch = CASES["least_squares"].make()
    flat = evalkit.linearize(batch.model, batch.inputs, batch.targets.flatten(), "gaussian")
    assert torch.equal(flat.losses, evalkit.linearize(*batch).losses)
    assert flat.losses.shape == (5,)


def test_a_sequence_without_any_label_is_refused() -> None:
    batch = CASES["token_labels"].make()
    targets = batch.targets.clone()
    targets[3] = -100
    message = refusal(lambda: evalkit.linearize(batch.model, batch.inputs, targets))
    assert "3" in message


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    batch = CASES["mlp_categorical"].make()
    with torch.no_grad():
        batch.model[-1].bias[0] = value
    for action in (evalkit.linearize, evalkit.score):
        assert "finite logits, found 6" in refusal(lambda action=action: action(*batch))


def test_unknown_names_suggest_near_ones() -> None:
    batch = CASES["mlp_categorical"].make()
    lin = evalkit.linearize(*batch)
    misspelled = refusal(lambda: evalkit.linearize(*batch[:3], likelihood="categoricl"))
    assert "categorical" in misspelled
    assert "'ief'" in refusal(lambda: evalkit.update("ieff", lin))
    assert "'sgd'" in refusal(lambda: evalkit.score(*batch, methods=("ef", "sdg")))
    assert "labels_per_sample" in refusal(lambda: evalkit.update("sf:labels_per_sampel=2", lin))
    assert "labels_per_sample" in refusal(lambda: evalkit.update("sf", lin, labels_per_sampel=2))


@pytest.mark.parametrize("damping", [-1e-3, math.nan, math.inf, (1e-3, -1.0), (), "large"])
def test_unusable_damping_is_refused(damping: Any) -> None:
    batch = CASES["mlp_categorical"].make()
    assert "damping" in refusal(lambda: evalkit.score(*batch, damping=damping))


@pytest.mark.parametrize("damping", [-1e-3, math.nan])
def test_unusable_damping_is_refused_by_each_call(damping: float) -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    for method in ("sgd", "ef", "ief", "ief-tikhonov", "sf", "ngd"):
        assert "damping" in refusal(lambda m=method: evalkit.update(m, lin, damping=damping))
    assert "damping" in refusal(lambda: evalkit.natural_gradient(lin, damping=damping))


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("sf:labels_per_sample=0", "labels_per_sample of at least 1, found 0"),
        (
            "sf:labels_per_sample=many",
            "an integer for the setting 'labels_per_sample', found 'many'",
        ),
        ("sf:2", "name=value"),
    ],
)
def test_unusable_settings_are_refused(name: str, word: str) -> None:
    batch = CASES["mlp_categorical"].make()
    assert word in refusal(lambda: evalkit.score(*batch, methods=("sgd", name)))


def test_solver_settings_are_checked() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    assert "max_iterations" in refusal(lambda: evalkit.natural_gradient(lin, max_iterations=0))
    assert "tolerance" in refusal(lambda: evalkit.natural_gradient(lin, tolerance=-1.0))


@pytest.mark.parametrize("seed", ["one", 2**70, None])
def test_unusable_seeds_are_refused(seed: Any) -> None:
    batch = CASES["mlp_categorical"].make()
    assert "seed" in refusal(lambda: evalkit.score(*batch, seed=seed))
    assert "seed" in refusal(lambda: evalkit.update("sf", evalkit.linearize(*batch), seed=seed))


def test_a_model_that_is_no_module_is_refused() -> None:
    batch = CASES["mlp_categorical"].make()
    assert "Module" in refusal(lambda: evalkit.linearize(batch.model.forward, *batch[1:]))


def test_a_likelihood_that_is_no_name_is_refused() -> None:
    batch = CASES["mlp_categorical"].make()
    said = refusal(lambda: evalkit.linearize(*batch[:3], likelihood=None))
    assert "unknown likelihood 'None'" in said


def test_a_model_without_trainable_parameters_is_refused() -> None:
    batch = CASES["mlp_categorical"].make()
    batch.model.requires_grad_(False)
    assert "trainable parameters" in refusal(lambda: evalkit.linearize(*batch))


def test_an_output_that_is_no_tensor_is_refused() -> None:
    model = Net(lambda net, x: {"out": net.out(x)}, out=nn.Linear(4, 3)).double()
    assert "logits" in refusal(lambda: evalkit.linearize(model, *data()))


def test_an_empty_batch_is_refused() -> None:
    x, y = data()
    said = refusal(lambda: evalkit.linearize(nn.Linear(4, 3).double(), x[:0], y[:0]))
    assert "at least one sample" in said


def test_vectors_of_another_size_are_refused() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    wrong = torch.zeros(lin.num_params + 1, dtype=torch.float64)
    for action in (lambda v: evalkit.gamma(lin, v), lin.jvp, lin.fvp):
        assert "a vector of length 194" in refusal(lambda action=action: action(wrong))
    assert "cotangents" in refusal(lambda: lin.vjp(torch.zeros(2, 2, dtype=torch.float64)))


def test_a_layer_without_second_derivative_is_refused() -> None:
    class Distances(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # The kernel itself, for which nothing stands in as it does for torch.cdist.
            return torch._VF.cdist(x, torch.eye(3, dtype=x.dtype), 3.0, None)

    model = nn.Sequential(nn.Linear(4, 3), Distances()).double()
    assert "cdist" in refusal(lambda: evalkit.score(model, *data()))
