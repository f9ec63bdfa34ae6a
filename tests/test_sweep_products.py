"""The dampings of a sweep share products, and their rows are those of single dampings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import evalkit
from evalkit.scoring.products import GROWTH, combination, products
from evalkit.updates import compute
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
