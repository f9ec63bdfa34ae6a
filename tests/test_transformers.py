"""Scores of tiny transformers against the dense reference, whatever the padding and batching."""

from __future__ import annotations

import functools
from copy import deepcopy
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import evalkit
from tests.support import dense
from tests.support.agreement import assert_near_in_norm, well_conditioned
from tests.support.expected_scores import expected_row
from tests.support.left_alone import state_of_model, state_of_process
from tests.support.table import Batch

pytest.importorskip("transformers")
pytest.importorskip("peft")

from transformers import PreTrainedModel

from tests.support.transformer_cases import TRANSFORMERS, padded

CG = "ngd:solver=cg:tolerance=1e-11:max_iterations=500"
DIRECT = "ngd:solver=direct"
METHODS = ("sgd", "ef", "ief", "ief-tikhonov", "sf", "sf:labels_per_sample=3")
NUMBERS = [
    "gamma",
    "ratio",
    "efficiency",
    "fisher_norm",
    "slope",
    "norm",
    "cosine_sgd",
]
DAMPING = 1e-2

every_transformer = pytest.mark.parametrize("name", TRANSFORMERS)
every_text = pytest.mark.parametrize(
    "name", [name for name in TRANSFORMERS if not name.startswith(("vit", "dinov2"))]
)

APART = [name for name in TRANSFORMERS if "alike" not in name]
"""Cases whose axes differ in length; the same models are there with axes alike, which a part of a
batch has not."""


@functools.cache
def built(name: str) -> tuple[Batch, list[object]]:
    """The case in the precision that checkpoints come in, and how its model was at first."""
    batch = TRANSFORMERS[name].make(torch.float32)
    return batch, model_and_settings(batch.model)


def batch_of(name: str) -> Batch:
    """The case, which all tests share."""
    return built(name)[0]


class InDouble(TorchFunctionMode):
    """Leaves values in float64 where a model's code would round them to float32.

    T5's norms do, so that sums over rows of half precision keep their digits. A derivative through
    such a rounding is known to seven digits, and the reference would be no better.
    """

    casts = (torch.Tensor.to, torch.Tensor.float)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        down = func is torch.Tensor.float or torch.float32 in (*args, *kwargs.values())
        if func in self.casts and args[0].dtype == torch.float64 and down:
            return args[0]
        return func(*args, **kwargs)


@functools.cache
def reference(name: str) -> dense.Dense:
    with InDouble():
        return dense.dense(*batch_of(name))


@functools.cache
def linearized(name: str) -> evalkit.Linearization:
    return evalkit.linearize(*batch_of(name), dtype="float64")


def natural_gradient(name: str) -> str:
    """The method by one solver a case; that solvers agree is held on the table of cases.

    The kernel of all outputs is dear where each position has a vocabulary of them and every
    parameter is trained.
    """
    return CG if name.startswith(("t5_full", "gpt2_full")) else DIRECT


@functools.cache
def table(name: str) -> pd.DataFrame:
    return scored(batch_of(name), (*METHODS, natural_gradient(name)))


def scored(batch: Batch, methods: tuple[str, ...], **settings: Any) -> pd.DataFrame:
    settings = {"damping": DAMPING, "seed": 3, "dtype": "float64"} | settings
    before = state_of_process()
    found = evalkit.score(*batch, methods=methods, **settings)
    assert state_of_process() == before
    return found


def one_a_product(name: str) -> tuple[str, ...]:
    """One method for each product that a linearization gives; the others share them.

    The kernel of all outputs is formed with adapters: the more parameters, the dearer, and each
    library's model is there with adapters as well.
    """
    return ("sgd", "ief", "sf") if "_full" in name else ("sgd", "ief", "sf", DIRECT)


def table_of(name: str, methods: tuple[str, ...]) -> pd.DataFrame:
    """The rows of some methods, scored as the batch stands."""
    whole = table(name)
    return whole[whole["method"].isin(methods)]


def assert_same_numbers(found: pd.DataFrame, expected: pd.DataFrame, tolerance: float) -> None:
    for got, wanted in zip(found.to_dict("records"), expected.to_dict("records"), strict=True):
        assert got["method"] == wanted["method"]
        numbers = {key: wanted[key] for key in NUMBERS}
        assert {key: got[key] for key in NUMBERS} == pytest.approx(numbers, rel=tolerance), got[
            "method"
        ]


# --- the models are what they claim to be ----------------------------------------------------


class Calls(TorchFunctionMode):
    """Counts the calls of fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


@every_transformer
def test_models_use_fused_attention_as_loaded(name: str) -> None:
    model, inputs, _, _ = batch_of(name)
    loaded = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    if not loaded._supports_sdpa:
        pytest.skip(f"this transformers has no fused attention for {type(loaded).__name__}")
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad(), Calls() as calls:
        dense.call(model, inputs)
    assert calls.count > 0


@every_transformer
def test_nothing_vanishes(name: str) -> None:
    """Every trainable parameter moves the logits, so that a forgotten one would be noticed."""
    model, expected = batch_of(name).model, reference(name)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    parts = expected.gradient.split([p.numel() for p in trained.values()])
    still = {key for key, part in zip(trained, parts, strict=True) if part.norm() < 1e-6}
    # Softmax is blind to a shift of all keys, and a mask token is for masked images alone.
    blind = ("key.bias", "key.base_layer.bias", "k_proj.bias", "mask_token")
    assert all(key.endswith(blind) for key in still), still


# --- the dense reference ---------------------------------------------------------------------


def wanted_directions(name: str) -> dict[str, Tensor]:
    """Method name, settings included, to its dense direction."""
    expected, lin = reference(name), linearized(name)
    draws = {count: lin.sampled_logit_gradients(3, count) for count in (1, 3)}
    return {
        "sgd": dense.sgd(expected),
        "ef": dense.ef(expected, DAMPING),
        "ief": dense.ief(expected, DAMPING),
        "ief-tikhonov": dense.ief_tikhonov(expected, DAMPING),
        "sf": dense.sf(expected, draws[1], DAMPING),
        "sf:labels_per_sample=3": dense.sf(expected, draws[3], DAMPING),
        natural_gradient(name): dense.ngd(expected, DAMPING),
    }


@every_transformer
def test_every_score(name: str) -> None:
    expected = reference(name)
    wanted = wanted_directions(name)
    found = table(name)
    assert list(found["method"]) == list(wanted)
    assert found["converged"].iloc[-1]
    for row, d in zip(found.to_dict("records"), wanted.values(), strict=True):
        numbers = expected_row(expected, d)
        got = {key: row[key] for key in numbers}
        assert got == pytest.approx(numbers, rel=1e-6), row["method"]


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if "_prompts" not in name])
def test_scores_with_the_default_damping(name: str) -> None:
    expected = reference(name)
    assert well_conditioned(expected)
    found = evalkit.score(*batch_of(name), methods=("sgd", "ef", "ief"), dtype="float64")
    wanted = (dense.sgd(expected), dense.ef(expected, 1e-12), dense.ief(expected, 1e-12))
    for row, d in zip(found.to_dict("records"), wanted, strict=True):
        numbers = expected_row(expected, d)
        got = {key: row[key] for key in numbers}
        assert got == pytest.approx(numbers, rel=1e-6), row["method"]


@every_transformer
def test_gram_matrix(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    scale = torch.outer(expected.gradient_norms, expected.gradient_norms)
    assert lin.gram.shape == scale.shape
    assert float(((lin.gram - expected.gram).abs() / scale).max()) <= 1e-6


@every_transformer
def test_gradient_and_products(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(expected.num_params, generator=generator, dtype=torch.float64)
    c = torch.randn(expected.logits.shape, generator=generator, dtype=torch.float64)
    assert_near_in_norm(lin.losses, expected.losses, 1e-6)
    assert_near_in_norm(lin.gradient, expected.gradient, 1e-6)
    assert_near_in_norm(lin.jvp(v), expected.jvp(v), 1e-6)
    assert_near_in_norm(lin.vjp(c), expected.vjp(c), 1e-6)
    assert_near_in_norm(lin.fvp(v), expected.fisher @ v, 1e-6)


@pytest.mark.parametrize("name", APART)
@pytest.mark.filterwarnings("error:samples influence each other")
def test_no_slow_route_is_taken(name: str) -> None:
    """One backward per sample for all parameters would be right, and too slow for a real model."""
    _ = evalkit.linearize(*batch_of(name), dtype="float64").gram


# --- what changes nothing --------------------------------------------------------------------


@every_text
def test_padding_changes_no_score(name: str) -> None:
    methods = one_a_product(name)
    found = scored(padded(batch_of(name), 3), methods)
    assert_same_numbers(found, table_of(name, methods), 1e-9)


@every_text
def test_padding_changes_no_gram_matrix(name: str) -> None:
    lin = evalkit.linearize(*padded(batch_of(name), 2), dtype="float64")
    expected = linearized(name).gram
    scale = expected.diagonal().sqrt()
    assert float(((lin.gram - expected).abs() / torch.outer(scale, scale)).max()) <= 1e-9


@pytest.mark.parametrize("name", APART)
def test_micro_batch_size_changes_no_score(name: str) -> None:
    """Each part is run again for each product, and an exact solve takes many of them."""
    methods = one_a_product(name) if name.endswith("_lora") else ("sgd", "ief", "sf")
    found = scored(batch_of(name), methods, micro_batch_size=two_parts(name))
    assert_same_numbers(found, table_of(name, methods), 1e-10)


def two_parts(name: str) -> int:
    """The micro-batch size that leaves a smaller part beside the first."""
    return len(batch_of(name).targets) // 2 + 1


@every_text
def test_output_of_a_tokenizer_is_taken_as_it_is(name: str) -> None:
    from transformers import BatchEncoding

    batch = batch_of(name)
    lin = evalkit.linearize(
        batch.model, BatchEncoding(batch.inputs), batch.targets, dtype="float64"
    )
    assert torch.equal(lin.logits, linearized(name).logits)


# --- what is left alone ----------------------------------------------------------------------


def model_and_settings(model: nn.Module) -> list[object]:
    """What must stay of a model, the settings of its parts and their kind of attention included."""
    parts = [part.config for part in model.modules() if hasattr(part, "config")]
    settings = [(part._attn_implementation, deepcopy(part.to_dict())) for part in parts]
    values = {key: value.tolist() for key, value in model.state_dict().items()}
    return [state_of_model(model), settings, list(values), values]


@pytest.mark.parametrize("name", APART)
def test_model_is_left_alone(name: str) -> None:
    """By whatever the tests before this one have done with it, and by these two at least."""
    batch, before = built(name)
    table(name)
    scored(batch, ("ief",), micro_batch_size=two_parts(name), dtype=None)
    assert model_and_settings(batch.model) == before
    assert not batch.model.training
