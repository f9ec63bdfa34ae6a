"""What the optimisers take from the one forward that a closure runs, and what they leave alone."""

from __future__ import annotations

import gc
import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from evalkit import linearize, optim, shifted_labels
from evalkit.errors import EvalkitError
from evalkit.optim.recorded import Forwards
from tests.support.cases import CASES
from tests.support.dense import call
from tests.support.table import Draw, initialise

TRAINED_ALIKE = (
    "prompt_by_repeat",
    "prompt_by_expand_through_a_layer",
    "positions_added",
    "as_many_positions_as_samples",
    "scale_of_features_and_a_number",
    "embedding_of_positions",
)


@dataclass
class Output:
    """As models of Hugging Face return it."""

    logits: Tensor


def small(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    draw = Draw(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    initialise(model, draw)
    return model, draw.normal(8, 4).to(dtype), draw.integers(3, 8)


def values(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in model.parameters()]


@pytest.mark.parametrize("name", TRAINED_ALIKE)
def test_what_all_samples_get_alike_takes_one_backward(name: str) -> None:
    """Although nobody says how many samples there are before the forward has run."""
    batch = CASES[name].make()
    own = {n: p for n, p in batch.model.named_parameters() if p.requires_grad}
    lin = Forwards(batch.likelihood).of_closure(
        lambda: (call(batch.model, batch.inputs), batch.targets), own
    )
    scored = linearize(batch.model, batch.inputs, batch.targets, batch.likelihood)
    found = lin.batches[0].recording.broadcast_parameters
    assert found
    assert found.keys() == scored.batches[0].recording.broadcast_parameters.keys()
    torch.testing.assert_close(lin.gram, scored.gram, rtol=1e-12, atol=0)


def test_an_axis_that_is_not_of_samples_is_none() -> None:
    """A scale meets six rows of a table, in a batch of four."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.out = nn.Parameter(torch.ones(3)), nn.Linear(18, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            table = torch.ones(6, 3).to(inputs) * self.scale
            return self.out((inputs * table).flatten(1))

    draw = Draw(3)
    model = Rows()
    initialise(model, draw)
    model, inputs, targets = model.double(), draw.normal(4, 6, 3), draw.integers(2, 4)
    lin = Forwards("categorical").of_closure(
        lambda: (model(inputs), targets), dict(model.named_parameters())
    )
    rows = []
    for x, y in zip(inputs, targets, strict=True):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        found = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    dense = torch.stack(rows)
    torch.testing.assert_close(lin.gram, dense @ dense.T, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:samples influence each other")
def test_a_model_that_changes_its_mode_is_tested_again() -> None:
    """Batch norm without scales is seen by no rule: in training, samples influence each other."""
    draw = Draw(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3))
    initialise(model, draw)
    model, inputs, targets = model.double(), draw.normal(8, 4), draw.integers(3, 8)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    moved = []
    for before in (False, True):
        optimizer = optim.IEF(model.parameters(), lr=1.0, damping=1e-3)
        if before:
            model.eval()
            optimizer.step(lambda: (model(inputs), targets))
        model.load_state_dict(start)
        model.train()
        optimizer.step(lambda: (model(inputs), targets))
        moved.append(values(model))
    for left, right in zip(*moved, strict=True):
        assert torch.equal(left, right)


def test_a_single_sample_tells_nothing_of_several() -> None:
    """As the last batch of an epoch that comes first in another order."""

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = torch.tanh(self.out(inputs))
            return hidden - 0.5 * hidden.mean(0)

    draw, moved = Draw(4), []
    inputs, targets = draw.normal(6, 4), draw.integers(3, 6)
    for first in (False, True):
        model = Centred().double()
        initialise(model, Draw(5))
        start = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = optim.EF(model.parameters(), lr=1e-3, damping=1e-3)
        if first:
            optimizer.step(lambda: (model(inputs[:1]), targets[:1]))  # noqa: B023
            model.load_state_dict(start)
        with pytest.warns(UserWarning, match="influence each other"):
            optimizer.step(lambda: (model(inputs), targets))  # noqa: B023
        moved.append(values(model))
    for left, right in zip(*moved, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_mean_loss_comes_back(dtype: torch.dtype) -> None:
    model, inputs, targets = small(dtype)
    expected = nn.functional.cross_entropy(model(inputs).double(), targets).detach()
    loss = optim.FGN(model.parameters(), lr=0.1).step(lambda: (model(inputs), targets))
    assert not loss.requires_grad
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_a_step_leaves_gradients_hooks_modes_and_no_graph() -> None:
    model, inputs, targets = small()
    for value in model.parameters():
        value.grad = torch.full_like(value, 3.0)
    seen: list[Any] = []

    def closure() -> tuple[Tensor, Tensor]:
        assert torch.is_grad_enabled()
        logits = model(inputs)
        seen.append(weakref.ref(logits))
        return logits, targets

    optimizer = optim.IEF(model.parameters(), lr=1.0)
    gc.disable()
    try:
        with torch.no_grad():
            optimizer.step(closure)
            assert not torch.is_grad_enabled()
        assert len(seen) == 1  # once
        assert seen[0]() is None
    finally:
        gc.enable()
    assert all(bool((value.grad == 3.0).all()) for value in model.parameters())
    assert all(value.requires_grad and value.is_leaf for value in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not _get_current_function_mode_stack()


def test_models_outputs_are_taken_as_they_are() -> None:
    model, inputs, targets = small()
    twin, *_ = small()
    optim.IEF(model.parameters(), lr=1.0).step(lambda: (Output(model(inputs)), targets))
    optim.IEF(twin.parameters(), lr=1.0).step(lambda: (twin(inputs), targets))
    assert all(torch.equal(a, b) for a, b in zip(values(model), values(twin), strict=True))
    weighted = optim.WeightedLoss(model)
    assert torch.equal(weighted(Output(model(inputs)), targets), weighted(model(inputs), targets))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda logits, targets: logits.sum(), "found a scalar"),
        (lambda logits, targets: (logits.sum(), targets), "not a loss"),
        (lambda logits, targets: None, "found the type NoneType"),
        (lambda logits, targets: (logits[:0], targets[:0]), "empty batches"),
        (lambda logits, targets: (logits.detach(), targets), "with a graph"),
        (lambda logits, targets: (logits, targets[:5]), "targets"),
    ],
)
def test_closures_that_return_something_else(returned: Any, said: str) -> None:
    model, inputs, targets = small()
    before = values(model)
    # A mistake in the program is none that may be skipped.
    optimizer = optim.IEF(model.parameters(), lr=1.0, on_failure="skip")
    with pytest.raises(EvalkitError, match=said):
        optimizer.step(lambda: returned(model(inputs), targets))
    assert all(torch.equal(a, b) for a, b in zip(values(model), before, strict=True))
    assert optimizer.skipped == 0


def test_a_weighted_loss_leaves_forwards_without_gradients_alone() -> None:
    model, inputs, targets = small()
    weighted = optim.WeightedLoss(model)
    model(inputs)
    with torch.no_grad():
        logits = model(inputs)  # as in validation
        assert not logits.requires_grad
    with torch.inference_mode():
        assert model(inputs).is_inference()
    with pytest.raises(EvalkitError, match="forward of the model with gradients"):
        weighted(logits, targets)
    with pytest.raises(RuntimeError):
        model(inputs[:, :2])
    assert not _get_current_function_mode_stack()
    weighted(model(inputs), targets).backward()


def test_tokens_at_their_own_positions_are_told_of_once() -> None:
    """As the Trainer hands labels to a loss that has to shift them itself."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=6, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).train()
    tokens = Draw(6).integers(11, 3, 5)
    weighted = optim.WeightedLoss(model)
    with pytest.warns(UserWarning, match="shifted_labels"):
        weighted(model(input_ids=tokens), tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weighted(model(input_ids=tokens), shifted_labels(tokens)).backward()
