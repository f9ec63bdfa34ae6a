"""Choices among the table of cases, and what every case gives."""

from __future__ import annotations

import functools

import pytest

import evalkit
from tests.support import dense
from tests.support.cases import CASES

SOME = [
    "mlp_categorical",
    "mlp_bernoulli",
    "mlp_gaussian",
    "attention_function_with_token_labels",
    "token_labels_bernoulli",
    "samples_that_interact",
    "duplicate_samples",
]
"""A case of each kind, for what need not be held on all of them."""

some_cases = pytest.mark.parametrize("name", SOME)


A_THIRD = [name for place, name in enumerate(CASES) if name in SOME or place % 3 == 0]
"""For what sees nothing of a case but products, which ``test_contract`` holds on all of them."""

SECOND_ROUTE_NEEDED = {
    "sequence_first_as_long_as_the_batch",
    "samples_that_interact",
    "samples_reordered_inside",
    "samples_sorted_by_value",
    "samples_answered_by_their_neighbour",
    "last_two_samples_interact",
    "context_shared_by_the_batch",
    "contrastive_pairs",
    "forces_of_an_energy",
}
"""Cases whose Gram matrix no layer's rule gives: the slower route must be found."""


SHARED_INPUTS = {
    "samples_routed_to_experts",
    *(name for name in CASES if "shared" in name or "mask_of_the_batch" in name),
    *SECOND_ROUTE_NEEDED,
}
"""Cases whose samples influence each other, so that a part of the batch is another batch."""

DAMPINGS = (0.0, 1e-6, 1e-2)

IN_TURNS = [
    (name, damping)
    for place, name in enumerate(CASES)
    for turn, damping in enumerate(DAMPINGS)
    if name in SOME or turn == place % len(DAMPINGS)
]
"""Every case with one of the dampings in turns, a case of each kind with all: what a layer does and
what a damping does are not felt by each other, so that every pair would tell no more."""

every_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def reference(name: str) -> dense.Dense:
    return dense.dense(*CASES[name].make())


@functools.cache
def linearized(name: str) -> evalkit.Linearization:
    return evalkit.linearize(*CASES[name].make())


IN_A_ROW = ("bags_one_after_the_other", "bags_with_weights_and_a_last_offset")
"""Cases whose samples lie one after the other, with offsets that no part of the batch has."""

SPLIT = [name for name in CASES if name not in SHARED_INPUTS and name not in IN_A_ROW]
"""Cases whose batches can be split."""
