"""Options, formats and precisions in which torch treats a layer in its own way."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evalkit
from tests.support import dense
from tests.support.agreement import agrees, batch, sequences
from tests.support.dense import assert_near
from tests.support.layer_cases import headed
from tests.support.table import Draw, Net
from tests.support.vectors import random_vector

# --- embeddings whose gradient torch treats in its own way -----------------------------------


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embedding_that_scales_gradients_by_frequency(kind: Any) -> None:
    """Scaled rows are no derivative of anything: J and its transpose would not belong together."""
    tokens = Draw(2).integers(5, 5, 3)
    case = batch(headed([kind(5, 4, scale_grad_by_freq=True), nn.Tanh()], tokens), tokens)
    with pytest.raises(evalkit.EvalkitError, match="scale_grad_by_freq"):
        evalkit.linearize(*case)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embedding_with_sparse_gradients(kind: Any) -> None:
    """How an optimiser is to be given a gradient does not change it."""
    tokens = Draw(2).integers(5, 5, 3)
    case, plain = (
        batch(headed([kind(5, 4, sparse=sparse), nn.Tanh()], tokens), tokens)
        for sparse in (True, False)
    )
    agrees(evalkit.linearize(*case), dense.dense(*plain))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_embedding_with_largest_norm_is_left_as_it_was() -> None:
    """Torch's forward shortens the rows in place; scoring a model must not."""
    tokens = Draw(2).integers(6, 5, 3)
    case = batch(headed([nn.Embedding(6, 4, max_norm=0.7)], tokens), tokens)
    before = case.model[0].weight.detach().clone()
    assert bool((before.norm(dim=1) > 0.7).any())
    _ = evalkit.linearize(*case).gram
    assert torch.equal(case.model[0].weight, before)


# --- precision, memory formats, refusals -----------------------------------------------------


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm(4)])
def test_layers_under_autocast(norm: nn.Module) -> None:
    """Half precision is evaluated in float32, also where a forward asks torch to choose it."""
    model = Net(
        lambda net, x: net.out(torch.tanh(net.norm(net.conv(x))).flatten(1).float()),
        conv=nn.Conv1d(2, 4, 3),
        norm=norm,
        out=nn.Linear(16, 3),
    )
    exact = evalkit.linearize(*batch(model, sequences().float(), torch.float32))
    inside = model.rule

    def rule(net: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return inside(net, x)

    model.rule = rule
    lin = evalkit.linearize(model, sequences().float(), exact.targets)
    assert lin._batches[0].recording.ruled == set(lin._batches.parameters)
    v = random_vector(lin.num_params).float()
    assert_near(lin.logits, exact.logits, 1e-6)
    assert_near(lin.gram, exact.gram, 1e-5)
    assert_near(lin.jvp(v), exact.jvp(v), 1e-5)
    assert_near(lin.vjp(lin.logit_gradients), exact.gradient, 1e-5)


def test_group_norm_of_channels_last_inputs_does_not_end_the_process() -> None:
    """Torch's backward of a group norm in this format crashes without a gradient of the inputs.

    Torch itself runs this model: the gradient of the convolution needs that of the inputs. The
    process is that of the tests, which is no less ended.
    """
    model = Net(
        lambda net, x: net.out((net.norm(net.conv(x)) * net.norm.weight.mean()).flatten(1)),
        conv=nn.Conv2d(2, 4, 1),
        norm=nn.GroupNorm(2, 4),
        out=nn.Linear(36, 3),
    ).to(memory_format=torch.channels_last)
    x = torch.randn(4, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(4) % 3
    F.cross_entropy(model(x), labels).backward()
    lin = evalkit.linearize(model, x, labels)
    assert lin.gradient.shape == (lin.num_params,)
    assert lin.gram.shape == (4, 4)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same", "stride": 2},
        {"padding": "none"},
        {"padding": -1},
        {"padding": (1, 1)},
        {"groups": 2},
    ],
)
def test_calls_that_torch_refuses_are_refused(options: dict[str, Any]) -> None:
    model = Net(
        lambda net, x: net.out(F.conv1d(x, net.weight, **options).mean(2)),
        weight=nn.Parameter(torch.zeros(3, 2, 3)),
        out=nn.Linear(3, 3),
    )
    case = batch(model, sequences())
    with pytest.raises(RuntimeError) as torchs:
        model(case.inputs)
    with pytest.raises(evalkit.EvalkitError, match=re.escape(str(torchs.value))):
        evalkit.linearize(*case)
