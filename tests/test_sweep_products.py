"""The dampings of a sweep share products, and their rows are those of single dampings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import evalkit
from evalkit.linearization import ByParameter
from evalkit.scoring.products import (
    GROWTH,
    Combination,
    combination,
    products,
    vector_combination,
)
from evalkit.updates import VectorUpdate, compute
from tests.support.cases import CASES
from tests.support.dense import assert_near
from tests.support.table import Draw

NEAR_ZERO = tuple(10.0**-k for k in range(12, 7, -1))
WIDE = tuple(10.0**k for k in range(-9, 3, 2))


def swept(spectrum: Tensor, dampings: tuple[float, ...]) -> Tensor:
    """The weights (K + lambda I)^-1 1 for a K with some eigenvalues, a column for each damping."""
    rotation = torch.linalg.qr(Draw(1).normal(len(spectrum), len(spectrum)).double())[0]
    inside = rotation.T @ torch.ones(len(spectrum)).double()
    return torch.stack([rotation @ (inside / (spectrum + d)) for d in dampings], 1)


@pytest.mark.parametrize(("dampings", "most"), [(NEAR_ZERO, 3), (WIDE, len(WIDE))])
@pytest.mark.parametrize("tolerance", [1e-9, 0.0])
def test_a_few_columns_make_up_all_entry_by_entry(
    dampings: tuple[float, ...], most: int, tolerance: float
) -> None:
    columns = swept(torch.logspace(-2, 3, 20).double(), dampings)
    columns[3] *= 1e12  # a saturated sample
    found = combination(columns, tolerance)
    assert len(found.chosen) <= most
    chosen = columns[:, list(found.chosen)]
    assert ((chosen @ found.factors - columns).abs() <= 2e-9 * columns.abs()).all()
    grown = chosen.abs() @ found.factors.abs()
    assert (grown <= 1.01 * GROWTH * columns.abs()).all()
    places = torch.eye(columns.shape[1]).double()[list(found.chosen)]
    assert torch.equal(found.factors[:, list(found.chosen)], places[:, list(found.chosen)])


def test_entries_that_are_zero_and_columns_that_are_equal() -> None:
    column = torch.tensor([1.0, 0.0, -3.0]).double()
    found = combination(torch.stack([column, 2 * column, column], 1), 1e-9)
    assert found.chosen == (0,)
    assert found.factors[0].tolist() == pytest.approx([1.0, 2.0, 1.0])


@pytest.mark.parametrize("dampings", [NEAR_ZERO, WIDE])
@pytest.mark.parametrize("method", ["ef", "ief", "sf:labels_per_sample=2", "ief-tikhonov"])
def test_shared_products_are_those_of_each_damping(
    method: str, dampings: tuple[float, ...]
) -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    updates = [compute(method, lin, damping, 0) for damping in dampings]
    shared = list(products(lin, updates, dear=0.0))
    for update, (product, length) in zip(updates, shared, strict=True):
        d = update.direction(lin)
        assert_near(product, lin.jvp(d), 1e-9)
        assert length == pytest.approx(float(d.norm()), rel=1e-9)


LAYERED = [
    "kfac:labels=exact",
    "kfac:style=pi",
    "kfac:style=plain",
    "ekfac:labels=improved",
    "kpsvd:labels=exact",
]


@pytest.mark.parametrize("method", LAYERED)
def test_a_few_directions_of_blocks_make_up_all(method: str) -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make(), dtype="float32")
    updates = [compute(method, lin, damping, 0) for damping in NEAR_ZERO]
    assert all(isinstance(one, VectorUpdate) for one in updates)
    found = vector_combination([one for one in updates if isinstance(one, VectorUpdate)], lin.unit)
    assert found is not None
    assert len(found.chosen) < len(updates)
    every = torch.stack([whole(one) for one in updates], 1)
    lengths = every.norm(dim=0)
    some = every[:, list(found.chosen)]
    assert ((some @ found.factors - every).norm(dim=0) <= 1e-7 * lengths).all()  # held in float32
    parts = torch.stack([lengths_of(one) for one in updates], 1)
    assert_near(parts.norm(dim=0), lengths, 1e-6)
    made = parts[:, list(found.chosen)] @ found.factors
    assert ((made - parts).norm(dim=0) <= 2e-9 * lengths).all()
    assert (some.norm(dim=0) @ found.factors.abs() <= 1.01 * GROWTH * lengths).all()
    for update, (product, length) in zip(updates, products(lin, updates, 0.0), strict=True):
        assert_near(product, lin.jvp(update.direction(lin)).double(), 1e-5)
        assert length == pytest.approx(float(update.direction(lin).norm()), rel=1e-5)


def test_dampings_that_change_directions_have_their_own_products() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make(), dtype="float32")
    found = combined(lin, "kfac:labels=exact", WIDE)
    assert found is not None
    assert len(found.chosen) > 2


@pytest.mark.parametrize("method", ["fop", "deflation:labels=exact", "block:labels=exact"])
def test_directions_that_are_no_sums_share_nothing(method: str) -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make(), dtype="float32")
    assert combined(lin, method, (1e-9, 1e-8)) is None
    double = evalkit.linearize(*CASES["mlp_categorical"].make())
    assert combined(double, "kfac", (1e-9, 1e-8)) is None


def test_directions_of_two_matrices_share_nothing() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make(), dtype="float32")
    both = [compute(name, lin, 1e-9, 0) for name in ("kfac", "kfac:labels=exact")]
    vectors = [one for one in both if isinstance(one, VectorUpdate)]
    assert vector_combination(vectors, lin.unit) is None


def combined(
    lin: evalkit.Linearization, method: str, dampings: tuple[float, ...]
) -> Combination | None:
    """What the dampings of a sweep are made of."""
    updates = [compute(method, lin, damping, 0) for damping in dampings]
    return vector_combination([u for u in updates if isinstance(u, VectorUpdate)], lin.unit)


def lengths_of(update: object) -> Tensor:
    """Of the parts of a direction."""
    assert isinstance(update, VectorUpdate)
    assert update.lengths is not None
    return update.lengths


def whole(update: object) -> Tensor:
    """A direction by parameter, in float64."""
    assert isinstance(update, VectorUpdate)
    assert isinstance(update.vector, ByParameter)
    return update.vector.to(torch.float64).vector()
