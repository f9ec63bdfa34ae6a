"""No result depends on the micro-batch size, and the dtype of an evaluation is the whole of it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import evalkit
from tests.support.cases import CASES
from tests.support.chosen_cases import IN_A_ROW, SOME, SPLIT, linearized
from tests.support.dense import assert_near
from tests.support.kernels import tangent_kernel


def quantities(lin: evalkit.Linearization) -> dict[str, Tensor]:
    """Return everything that a linearization knows."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(lin.num_params, generator=generator).double()
    c = torch.randn(lin.logits.shape, generator=generator).double()
    return {
        "logits": lin.logits,
        "losses": lin.losses,
        "gradient": lin.gradient,
        "jvp": lin.jvp(v),
        "vjp": lin.vjp(c),
        "fvp": lin.fvp(v),
        "kernel_product": lin.kernel_product(c),
        "gram": lin.gram,
        "gram_of": lin.gram_of(torch.stack([c, lin.logit_gradients])),
        "tangent_kernel": tangent_kernel(lin),
        "gradient_norms": lin.gradient_norms,
        "gamma_floor": torch.tensor(lin.gamma_floor),
    }


@pytest.mark.parametrize("name", SPLIT)
def test_no_quantity_depends_on_the_micro_batch_size(name: str) -> None:
    model, inputs, targets, likelihood = CASES[name].make()
    expected = quantities(linearized(name))
    # Parts of one sample, of two, and of one less than there are, which leaves a part of one beside
    # a larger one: in turns, since the layers of neighbouring cases are alike.
    turns = (1, 2, max(len(targets) - 1, 1))
    sizes = {*turns, len(targets) + 5} if name in SOME else {turns[SPLIT.index(name) % 3]}
    for size in sizes:
        lin = evalkit.linearize(model, inputs, targets, likelihood, micro_batch_size=size)
        for key, value in quantities(lin).items():
            assert_near(value, expected[key])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", IN_A_ROW)
def test_samples_in_a_row_are_not_split(name: str, size: int) -> None:
    with pytest.raises(evalkit.EvalkitError, match="a few at a time"):
        evalkit.linearize(*CASES[name].make(), micro_batch_size=size)


@pytest.mark.parametrize("name", ["mlp_categorical", "convolution_group_norm", "mlp_bernoulli"])
def test_no_score_depends_on_the_micro_batch_size(name: str) -> None:
    batch = CASES[name].make()
    methods = ("sgd", "ef", "ief", "sf", "ngd:solver=cg", "ngd:solver=direct")
    whole = evalkit.score(*batch, methods=methods, damping=(1e-4, 1e-2))
    split = evalkit.score(*batch, methods=methods, damping=(1e-4, 1e-2), micro_batch_size=2)
    # CG stops as early as it may: its results agree to its tolerance, not its count of iterations.
    apart = ("iterations", "relative_residual", "error")
    alike = [column for column in whole if column not in apart]
    pd.testing.assert_frame_equal(split[alike], whole[alike], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [0, -1])
def test_wrong_sizes_are_refused(size: int) -> None:
    with pytest.raises(evalkit.EvalkitError, match="micro-batch size"):
        evalkit.linearize(*CASES["mlp_categorical"].make(), micro_batch_size=size)


def single(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    model, inputs, targets, likelihood = batch
    return deepcopy(model).float(), inputs.float(), targets, likelihood


@pytest.mark.parametrize("name", ["mlp_categorical", "convolution_group_norm"])
@pytest.mark.parametrize("dtype", ["float64", torch.float64])
def test_dtype_is_that_of_the_whole_evaluation(name: str, dtype: Any) -> None:
    model, inputs, targets, likelihood = single(CASES[name].make())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lin = evalkit.linearize(model, inputs, targets, likelihood, dtype=dtype)
    cast = evalkit.linearize(deepcopy(model).double(), inputs.double(), targets, likelihood)
    assert lin.logits.dtype == lin.gradient.dtype == torch.float64
    assert torch.equal(lin.gradient, cast.gradient)
    assert torch.equal(lin.gram, cast.gram)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16, "int64"])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(evalkit.EvalkitError, match="float32 or float64"):
        evalkit.linearize(*CASES["mlp_categorical"].make(), dtype=dtype)
