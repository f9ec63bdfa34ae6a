"""Factors and blocks of the Gram matrix against the rows of a dense Jacobian, J_n^T c_kn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.linearization import FormedRows, LayerFactors
from tests.support.cases import CASES
from tests.support.chosen_cases import A_THIRD, SPLIT, linearized, reference
from tests.support.dense import assert_near
from tests.support.documents import document, python_files
from tests.support.table import Draw

DRAWS = 2


def cotangents_like(logits: Tensor) -> Tensor:
    """Random c, (K, N, ..., C), one of them small enough to need its scale."""
    c = Draw(1).normal(DRAWS, *logits.shape)
    c[-1] *= 1e-9
    return c


def joined(lin: evalkit.Linearization, c: Tensor, numbers: int) -> Tensor:
    """Return the rows that factors tell of, each entry once: (K, N, P)."""
    places = lin.by_name(torch.arange(lin.num_params).to(lin.gradient))
    rows = torch.full((DRAWS, lin.num_samples, lin.num_params), torch.nan).to(lin.gradient)

    def put(names: Tensor, samples: slice, values: Tensor) -> None:
        where = names.flatten().long()
        assert rows[:, samples, where].isnan().all(), "told twice"
        rows[:, samples, where] = values

    for part in lin.factors(c, numbers):
        if isinstance(part, FormedRows):
            put(places[part.name], part.samples, part.rows)
            continue
        draws, count = part.rows.shape[:2]
        where = part.matrix(places)
        assert_near(
            torch.cat([v.flatten() for v in part.tensors(where).values()]),
            torch.cat([places[name].flatten() for name in part.names]),
        )
        put(where, part.samples, part.rows.reshape(draws, count, -1))
    assert not rows.isnan().any(), "not every parameter is told of"
    return rows


@pytest.mark.parametrize("name", CASES)
def test_factors_make_the_rows_of_every_parameter_and_blocks_their_products(name: str) -> None:
    lin, jacobian = linearized(name), reference(name).jacobian
    c = cotangents_like(lin.logits)
    expected = torch.einsum("nep,kne->knp", jacobian, c.flatten(2))
    for numbers in (1, 1 << 20):
        for found, wanted in zip(joined(lin, c, numbers), expected, strict=True):
            assert_near(found, wanted)
    c = Draw(2).normal(DRAWS, *lin.logits.shape)
    rows = torch.einsum("nep,kne->knp", jacobian, c.flatten(2)).flatten(0, 1)
    blocks, places = lin.gram_blocks(c), lin.by_name(torch.arange(lin.num_params))
    assert sorted(n for names in blocks for n in names) == sorted(places)
    assert_near(torch.stack(list(blocks.values())).sum(0), lin.gram_of(c))
    whole = rows @ rows.T
    for names, block in blocks.items():
        own = rows[:, torch.cat([places[name].flatten().long() for name in names])]
        assert_near(whole + block, whole + own @ own.T)  # within rounding of the whole


@pytest.mark.parametrize("name", [name for name in A_THIRD if name in SPLIT])
def test_micro_batches_change_neither(name: str) -> None:
    model, inputs, targets, likelihood = CASES[name].make()
    whole = linearized(name)
    parts = evalkit.linearize(model, inputs, targets, likelihood, micro_batch_size=2)
    c = cotangents_like(whole.logits)
    assert_near(joined(parts, c, 1 << 20), joined(whole, c, 1 << 20))
    blocks, expected = parts.gram_blocks(c), whole.gram_blocks(c)
    for names, block in blocks.items():
        if names in expected:  # a part may lose the bias that the whole batch has with its weight
            # On the scale of all: of a layer that norms cancel there is nothing but rounding.
            scale = 1e-10 * float(max(one.abs().max() for one in expected.values()))
            torch.testing.assert_close(block, expected[names], rtol=1e-10, atol=scale)


def test_a_layer_has_factors_and_others_have_rows() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3, bias=False)).double()
    lin = evalkit.linearize(model, Draw(0).normal(6, 5), torch.arange(6) % 3)
    parts = {part.names: part for part in lin.factors(lin.logit_gradients[None])}
    assert list(parts) == [("0.weight", "0.bias"), ("2.weight",), ("1.weight",), ("1.bias",)]
    first = parts["0.weight", "0.bias"]
    assert isinstance(first, LayerFactors)
    assert first.inputs.shape == (1, 6, 1, 6)
    assert first.output_gradients.shape == (1, 1, 6, 1, 4)
    gradient = first.matrix(lin.by_name(lin.gradient))
    assert_near(first.rows.sum((0, 1)), gradient)


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_kfac_of_the_documentation(micro_batch_size: int | None) -> None:
    """Against (B (x) A / (N T) + lambda I)^-1, formed for each layer from hooks of autograd."""
    exec(python_files(document("guides/method.md"))["kfac.py"], {})
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2, bias=False)).double()
    x, y = Draw(0).normal(5, 6, 4), Draw(1).integers(2, 5, 6)  # six positions
    lin = evalkit.linearize(model, x, y, micro_batch_size=micro_batch_size)
    hidden = model[0](x)
    moved = model[1](hidden)
    d = torch.autograd.grad(model[2](moved), hidden, lin.logit_gradients)[0].flatten(0, 1)
    last = lin.logit_gradients.flatten(0, 1)
    ones = x.new_ones(30, 1)
    layers = [(torch.cat([x.flatten(0, 1), ones], 1), d), (moved.detach().flatten(0, 1), last)]
    expected = []
    for a, d in layers:
        fisher = torch.kron(d.T @ d, a.T @ a / 30)
        step = torch.linalg.solve(
            fisher + 0.1 * torch.eye(len(fisher)).double(), (d.T @ a).flatten()
        )
        expected.append(step.view(d.shape[1], a.shape[1]))
    weight, bias = expected[0][:, :-1], expected[0][:, -1]
    wanted = torch.cat([weight.flatten(), bias, expected[1].flatten()])
    found = evalkit.update("kfac-empirical", lin, damping=0.1)
    assert_near(found, wanted)
    assert_near(found, evalkit.update("kfac:labels=empirical", lin, damping=0.1))
