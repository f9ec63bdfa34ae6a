"""Layer rules: taken where they should be, equal to the fallbacks and to the dense computation."""

from __future__ import annotations

import pytest
import torch

from evalkit.linearization import ruled_rows
from evalkit.linearization.gram import ROUTES, gram_matrix
from evalkit.linearization.per_sample import CannotVectorizeError
from tests.support.cases import CASES
from tests.support.chosen_cases import SECOND_ROUTE_NEEDED, linearized, reference
from tests.support.dense import assert_near
from tests.support.layer_cases import FALLBACK, UNVECTORIZED


@pytest.mark.parametrize("name", FALLBACK)
def test_rules_are_taken(name: str) -> None:
    batch, lin = CASES[name].make(), linearized(name)
    trainable = {key for key, p in batch.model.named_parameters() if p.requires_grad}
    found = ruled_rows.row_kinds(lin._batches[0].recording)
    assert set(found) == trainable - FALLBACK[name]


@pytest.mark.parametrize("name", [name for name in CASES if name not in SECOND_ROUTE_NEEDED])
def test_rules_and_fallbacks_agree(name: str) -> None:
    """Without the check behind the rules, which would hide a wrong one by a far slower route."""
    lin = linearized(name)
    cotangents = torch.stack([lin.logit_gradients, lin.logit_gradients.flip(-1)])
    found = gram_matrix(lin._batches, cotangents, ROUTES[0])
    assert_near(found, gram_matrix(lin._batches, cotangents, ROUTES[2]))
    one = len(found) // 2
    assert_near(found[:one, :one], reference(name).gram)


@pytest.mark.parametrize("name", FALLBACK)
def test_vmap_agrees_or_says_that_it_cannot(name: str) -> None:
    lin = linearized(name)
    cotangents = lin.logit_gradients.unsqueeze(0)
    if name in UNVECTORIZED:
        with pytest.raises(CannotVectorizeError):
            gram_matrix(lin._batches, cotangents, ROUTES[1])
    else:
        assert_near(gram_matrix(lin._batches, cotangents, ROUTES[1]), lin.gram)


@pytest.mark.parametrize("name", FALLBACK)
def test_changes_of_parameters_add_up(name: str) -> None:
    """A layer takes a change along where it pushes; where nothing reaches it, it starts."""
    lin = linearized(name)
    vector = torch.randn(lin.num_params, generator=torch.Generator().manual_seed(0)).double()
    total, start = torch.zeros_like(lin.logits), 0
    for value in lin._batches.parameters.values():
        alone = torch.zeros_like(vector)
        alone[start : start + value.numel()] = vector[start : start + value.numel()]
        total += lin.jvp(alone)
        start += value.numel()
    assert_near(total, lin.jvp(vector))
