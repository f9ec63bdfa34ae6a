"""Agreement of a linearization with the dense reference."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

import evalkit
from tests.support import dense
from tests.support.dense import assert_near
from tests.support.table import Batch, Draw, initialise
from tests.support.vectors import random_vector

TIGHT = 1e-9


def assert_near_in_norm(actual: Tensor, expected: Tensor, tolerance: float = TIGHT) -> None:
    """|actual - expected| <= tolerance |expected|, and the same shape."""
    assert actual.shape == expected.shape
    error = float((actual.double() - expected).norm() / expected.norm())
    assert error <= tolerance, f"relative error {error:.1e}"


def well_conditioned(expected: dense.Dense) -> bool:
    """Whether a solve with the undamped Gram matrix is accurate enough to be compared."""
    values = torch.linalg.eigvalsh(expected.gram)
    return bool(values[0] > 1e-7 * values[-1])


def batch(model: nn.Module, inputs: Tensor, dtype: torch.dtype = torch.float64) -> Batch:
    """The model with parameters from a seed, in float64, and labels of three classes."""
    draw = Draw(1)
    initialise(model.double(), draw)
    return Batch(model.to(dtype), inputs, draw.integers(3, len(inputs)), "categorical")


def sequences(samples: int = 4) -> Tensor:
    return Draw(2).normal(samples, 2, 6)


def agrees(lin: evalkit.Linearization, expected: dense.Dense) -> None:
    """Every product and both kinds of Gram matrices are those of the reference."""
    v = random_vector(expected.num_params)
    c = random_vector(expected.logits.numel()).reshape(expected.logits.shape)
    own_v, own_c = v.to(lin.logits.device), c.to(lin.logits.device)
    assert_near(lin.logits, expected.logits)
    assert_near(lin.vjp(own_c), expected.vjp(c))
    assert_near(lin.jvp(own_v), expected.jvp(v))
    assert_near(lin.fvp(own_v), expected.fisher @ v)
    assert_near(lin.kernel_product(own_c), expected.jvp(expected.vjp(c)))
    assert_near(lin.gram, expected.gram)
    assert_near(lin.gram_of(own_c.unsqueeze(0)), expected_gram(expected, c))


def expected_gram(expected: dense.Dense, c: Tensor) -> Tensor:
    rows = torch.einsum("nep,ne->np", expected.jacobian, c.flatten(1))
    return rows @ rows.T


def agrees_with_dense(model: nn.Module, inputs: Tensor, quiet: bool = True) -> None:
    """Agreement; ``quiet`` says that it must not come by the slowest route, which warns."""
    case = batch(model, inputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("error" if quiet else "ignore", message="samples influence")
        agrees(evalkit.linearize(*case), dense.dense(*case))
