"""Matrix errors and layer scales against matrices that are formed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.diagnosis import blocks as distances
from evalkit.diagnosis import layer_scales, matrix_errors
from evalkit.diagnosis.matrix_errors import ALL, WHOLE, block_name, check_have_blocks
from evalkit.storage.rows import MatrixError
from evalkit.updates import compute
from tests.support.cases import CASES, Batch, Draw
from tests.support.structured import (
    LABELS,
    Oracle,
    cotangents,
    full,
    kfac_factors,
    nearest,
    power,
)
from tests.support.table import initialise
from tests.test_curvature import MADE


def shampoo(a: Tensor, d: Tensor, exponent: float = 1.0) -> Tensor:
    rows = torch.einsum("knto,nti->knoi", d, a).flatten(0, 1)
    left, right = (rows @ rows.mT).sum(0), (rows.mT @ rows).sum(0)
    if exponent == 1:
        return torch.kron(left / left.trace().clamp_min(1e-300), right)
    return torch.kron(power(left, exponent), power(right, exponent))


def ekfac(a: Tensor, d: Tensor) -> Tensor:
    b_, a_ = kfac_factors(a, d, "expand")
    basis = torch.kron(torch.linalg.eigh(b_)[1], torch.linalg.eigh(a_)[1])
    return basis @ torch.diag((basis.T @ full(a, d) @ basis).diagonal()) @ basis.T


def eva(a: Tensor, d: Tensor) -> Tensor:
    inside, out = a.mean((0, 1)), d.sum((1, 2)) / len(a)
    return torch.kron(len(a) * out.T @ out, torch.outer(inside, inside))


FORMED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "block": full,
    "kfac": lambda a, d: torch.kron(*kfac_factors(a, d, "expand")),
    "kfac:sharing=reduce": lambda a, d: torch.kron(*kfac_factors(a, d, "reduce")),
    "ekfac": ekfac,
    "diagonal": lambda a, d: torch.diag(full(a, d).diagonal()),
    "kpsvd": lambda a, d: torch.kron(*nearest(full(a, d), d.shape[-1], a.shape[-1])),
    "shampoo": shampoo,
    "shampoo:exponent=0.5": lambda a, d: shampoo(a, d, 0.5),
    "eva": eva,
}
"""F~ of a group, (out in, out in)."""


class Formed:
    """All blocks of a method as one matrix over the parameters, (P, P)."""

    def __init__(self, oracle: Oracle, labels: str, text: str) -> None:
        c = cotangents(oracle.reference, oracle.lin, labels)
        rows, size = oracle.rows(c), len(oracle.reference.gradient)
        self.matrix = torch.zeros(size, size).double()
        self.places: dict[str, list[Tensor]] = {}
        covered: set[str] = set()
        for names, layer in oracle.layers(c).items():
            covered |= set(names)
            for group, places in enumerate(oracle.matrix_places(layer)):
                self._put(names, places, FORMED[text](layer.a[group], layer.d[group]))
        for name, places in oracle.places.items():
            if name not in covered:
                own = rows[:, places.flatten()]
                self._put((name,), places, own.T @ own)

    def _put(self, names: tuple[str, ...], places: Tensor, block: Tensor) -> None:
        flat = places.flatten()
        self.matrix[flat[:, None], flat] = block
        self.places.setdefault(block_name(names), []).append(flat)

    def of(self, block: str) -> Tensor:
        """A block, or the whole matrix, which is zero between blocks."""
        if block in (ALL, WHOLE):
            return self.matrix
        return torch.block_diag(*(self.matrix[p[:, None], p] for p in self.places[block]))


def relative(exact: Tensor, other: Tensor) -> tuple[float, float]:
    """Error 1 and 2."""
    norm = float(exact.norm())
    values = [torch.linalg.svdvals(m).sort(descending=True).values for m in (exact, other)]
    return float((exact - other).norm()) / norm, float((values[0] - values[1]).norm()) / norm


def assert_errors(oracle: Oracle, labels: str, texts: list[str], found: list[MatrixError]) -> None:
    """Every row of every method, to 1e-8 or as far as the row says."""
    exact_blocks = Formed(oracle, "exact", "block")
    rows = oracle.rows(cotangents(oracle.reference, oracle.lin, "exact"))
    whole = rows.T @ rows
    for text in texts:
        own = [row for row in found if row.method == f"{text}:labels={labels}"]
        formed = Formed(oracle, labels, text)
        nonzero = {name for name in exact_blocks.places if exact_blocks.of(name).any()}
        assert {*nonzero, ALL, WHOLE} <= {row.block for row in own}
        for row in own:
            if row.block not in {*nonzero, ALL, WHOLE}:
                assert math.isnan(row.frobenius)
                continue
            exact = whole if row.block == WHOLE else exact_blocks.of(row.block)
            frobenius, spectrum = relative(exact, formed.of(row.block))
            tolerance = 1e-8 * max(1.0, frobenius)
            assert row.low - tolerance <= row.frobenius <= row.high + tolerance
            assert row.low - tolerance <= frobenius <= row.high + tolerance, (text, row)
            if row.high - row.low < 1e-8:
                assert abs(row.frobenius - frobenius) <= tolerance, (text, row)
            assert abs(row.spectrum - spectrum) <= 1e-8 * max(1.0, spectrum), (text, row)
            if row.block == WHOLE:
                share = float((whole - exact_blocks.matrix).norm() / whole.norm())
                assert row.off_diagonal == pytest.approx(share, rel=1e-8, abs=1e-6)


@pytest.mark.parametrize("small", [distances.SMALL, 0], ids=["formed", "gram"])
@pytest.mark.parametrize(("turn", "name"), list(enumerate(MADE)))
def test_every_block_of_every_structure_has_the_dense_errors(
    turn: int, name: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source of labels in turns; small blocks formed, or by their Gram matrix where it is less."""
    monkeypatch.setattr(distances, "SMALL", small)
    oracle, labels = Oracle(MADE[name]()), LABELS[turn % 5]
    texts = [text for text in FORMED if (text, labels) != ("eva", "exact")]
    found = matrix_errors(oracle.lin, [f"{text}:labels={labels}" for text in texts])
    assert_errors(oracle, labels, texts, found)
