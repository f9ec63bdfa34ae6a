"""Factors of Gram matrices: by an eigensolver where it is exact enough, by singular values else."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evalkit import factorization
from evalkit.factorization import factorize, factorize_rows, row_basis
from tests.support.table import Draw

SINGLE = 2.0**-24
"""The rounding of an evaluation in float32."""


def spread(least: float, count: int = 20) -> Tensor:
    """A Gram matrix with eigenvalues from one down to the least."""
    rotation = torch.linalg.qr(Draw(1).normal(count, count).double())[0]
    powers = torch.linspace(0, 1, count).double()
    return (rotation * least**powers) @ rotation.T


@pytest.mark.parametrize("least", [1e-1, 1e-4])
def test_matrices_of_single_precision_need_no_singular_values(
    least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gram = spread(least)
    expected = factorize(gram)
    monkeypatch.delattr(factorization, "_singular_values")
    found = factorize(gram, unit=SINGLE)
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-10, atol=0)
    right = Draw(2).normal(len(gram)).double()
    for damping in (0.0, 1e-3):
        assert found.solve(right, damping) == pytest.approx(
            expected.solve(right, damping).numpy(), rel=1e-9
        )
    assert found.complete
    assert found.certain


@pytest.mark.parametrize(
    ("gram", "unit"),
    [
        (spread(1e-8), SINGLE),
        (spread(1e-1), 2.0**-53),
        (torch.ones(3, 3).double(), SINGLE),
        (torch.diag(torch.tensor([1.0, 1e-9])).double(), SINGLE),
        (torch.zeros(2, 2).double(), SINGLE),
        (torch.zeros(0, 0).double(), SINGLE),
    ],
)
def test_thin_matrices_and_those_of_double_precision_keep_them(
    gram: Tensor, unit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = factorize(gram)
    monkeypatch.delattr(torch.linalg, "eigh")
    assert torch.equal(factorize(gram, unit=unit).eigenvalues, expected.eigenvalues)


@pytest.mark.parametrize("shape", [(0, 6), (4, 0)])
def test_no_numbers_have_rank_zero_and_nothing_is_printed(
    shape: tuple[int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    rows = torch.zeros(shape, dtype=torch.float64)
    assert factorize_rows(rows).rank == 0
    assert row_basis(rows).shape == (0, shape[1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("decomposed", [factorize_rows, row_basis])
def test_rows_that_are_not_finite_are_refused(
    value: float, everywhere: bool, decomposed: Callable[[Tensor], object]
) -> None:
    rows = Draw(1).normal(4, 6).double()
    rows[slice(None) if everywhere else 1] = value
    with pytest.raises(torch.linalg.LinAlgError, match="NaN or infinity"):
        decomposed(rows)
