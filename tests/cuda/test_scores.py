"""Scores of all methods and solvers on a device are those of the CPU, within their errors."""

from __future__ import annotations

import pytest
import torch

import evalkit
from tests.cuda.comparison import (
    METHODS,
    SOLVERS,
    case,
    every_case,
    float32_scores,
    same_scores,
    scores,
    some_cases,
    within_their_errors,
)
from tests.support.cases import CASES
from tests.support.structured import LABELS
from tests.support.structured_cases import NAMES
from tests.support.structures import STRUCTURES

_TURNS = {name: place for place, name in enumerate(NAMES)}


@pytest.mark.parametrize("damping", [1e-12, 1e-3])
@every_case
def test_float64_scores(name: str, damping: float, device: str) -> None:
    same_scores(case(name, device), device, METHODS, damping)


@pytest.mark.parametrize("solver", SOLVERS)
@every_case
def test_float64_natural_gradients(name: str, solver: str, device: str) -> None:
    same_scores(case(name, device), device, [solver], 1e-3)


@every_case
def test_float32_scores(name: str, device: str) -> None:
    float32_scores(name, device, (*METHODS, "ngd"), 1e-3)


def structured(name: str) -> list[str]:
    """Every structure with one source of labels, in turns over the cases, and SWAN."""
    texts = ["swan"]
    for turn, structure in enumerate(STRUCTURES):
        labels = LABELS[(turn + _TURNS[name]) % len(LABELS)]
        if structure == "eva" and labels == "exact":  # whose signs are arbitrary
            labels = "empirical"
        texts.append(f"{structure}:labels={labels}")
    return texts


@pytest.mark.parametrize("name", NAMES)
def test_float64_scores_of_methods_by_layers(name: str, device: str) -> None:
    same_scores(case(name, device), device, structured(name), 1e-2)


@pytest.mark.filterwarnings("ignore:.*outside of the range")
@pytest.mark.parametrize("name", NAMES)
def test_float32_scores_of_methods_by_layers(name: str, device: str) -> None:
    float32_scores(name, device, structured(name), 1e-2)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("damping", [1e-6, 1e-1])
def test_kfac_of_every_source_of_labels(labels: str, damping: float, device: str) -> None:
    texts = [f"{name}:labels={labels}" for name in ("kfac", "ekfac", "kpsvd", "block")]
    for name in ("mlp_categorical", "convolution_group_norm", "token_labels"):
        same_scores(case(name, device), device, texts, damping)


@some_cases
def test_a_method_with_past_tasks(name: str, device: str) -> None:
    tables = []
    for place in ("cpu", device):
        batch = CASES[name].make().on(place)
        past = evalkit.past_task(batch.model, [(batch.inputs, batch.targets)], batch.likelihood)
        settings = {"methods": "fopng", "damping": 1e-3, "past": past}
        tables.append(evalkit.score(*batch, **settings))
    within_their_errors(tables[1], tables[0])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", ["mlp_categorical", "convolution_group_norm", "mlp_bernoulli"])
def test_micro_batches(name: str, size: int, device: str) -> None:
    batch = case(name, device)
    settings = {"methods": (*METHODS, "kfac", *SOLVERS), "damping": 1e-3}
    found = scores(batch, device, micro_batch_size=size, **settings)
    within_their_errors(found, scores(batch, "cpu", **settings))


def test_the_random_state_of_a_card_is_left_alone(device: str) -> None:
    if device != "cuda":
        pytest.skip("a card alone has a random state of its own")
    model, inputs, targets, likelihood = case("convolution_group_norm", device).on(device)
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    evalkit.score(model, inputs, targets, likelihood, (*METHODS, *SOLVERS), damping=1e-3)
    assert torch.equal(torch.cuda.get_rng_state(), before)
