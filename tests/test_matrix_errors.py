"""Matrix errors and layer scales against matrices that are formed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import evalkit
import evalkit.diagnosis.running
from evalkit.diagnosis import blocks as distances
from evalkit.diagnosis import layer_scales, matrix_errors
from evalkit.diagnosis.matrix_errors import ALL, WHOLE, block_name
from evalkit.diagnosis.scales import best_scales
from evalkit.storage.rows import MatrixError
from evalkit.updates import compute
from tests.support.cases import CASES, Draw
from tests.support.structured import Oracle, cotangents
from tests.support.structures import full, kfac_factors, nearest, power

diagnosis = sys.modules["evalkit.diagnosis.matrix_errors"]


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


CHOSEN = [
    ("mlp_categorical", "sampled", 0),
    ("scalar_logit", "floor", 0),
    ("one_sample", "exact", 512),
    ("convolution_group_norm", "improved", 512),
    ("conv1d_groups", "empirical", 0),
    ("low_rank_adapter", "exact", 0),
    ("module_used_twice", "sampled", 512),
    ("embedding_tied_by_attribute", "exact", 0),
    ("frozen_parameters", "floor", 512),
    ("unused_parameters", "empirical", 0),
    ("duplicate_samples", "improved", 0),
    ("token_labels", "sampled", 0),
]


@pytest.mark.parametrize(("name", "labels", "small"), CHOSEN)
def test_every_block_of_every_structure_has_the_dense_errors(
    name: str, labels: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small blocks formed, or by their Gram matrix where that is less."""
    monkeypatch.setattr(distances, "SMALL", small)
    oracle = Oracle(CASES[name].make())
    texts = [text for text in FORMED if (text, labels) != ("eva", "exact")]
    found = matrix_errors(oracle.lin, [f"{text}:labels={labels}" for text in texts])
    assert_errors(oracle, labels, texts, found)


def test_without_eigenvalues_of_factors_norms_are_found_by_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As for a matrix of two terms: the spectrum of a small block is found, of a large one not."""
    lin = evalkit.linearize(*CASES["conv1d_groups"].make())
    monkeypatch.setattr(distances, "SMALL", 0)
    wanted = matrix_errors(lin, ["kfac:labels=empirical"])
    monkeypatch.setattr(distances, "spectrum", lambda solver: None)
    for most in (1024, 0):
        monkeypatch.setattr(distances, "SPECTRUM", most)
        for one, other in zip(matrix_errors(lin, ["kfac:labels=empirical"]), wanted, strict=True):
            assert one.route == other.route
            assert one.frobenius == pytest.approx(other.frobenius, rel=1e-9, abs=1e-6)
            known = most or one.route == "formed"
            if known or not math.isnan(one.spectrum):
                assert one.spectrum == pytest.approx(other.spectrum, rel=1e-9, abs=1e-9)
    assert math.isnan(one.spectrum)  # of the whole matrix


def by_block(rows: list[MatrixError], method: str) -> dict[str, MatrixError]:
    return {row.block: row for row in rows if row.method == method}


def test_micro_batches_and_gram_matrices_by_rules_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch, names = CASES["token_labels"].make(), ["kfac:labels=exact", "block:labels=floor"]
    wanted = matrix_errors(evalkit.linearize(*batch), names)
    monkeypatch.setattr(distances, "SMALL", 0)
    monkeypatch.setattr(distances, "FORMED", 0)
    found = matrix_errors(evalkit.linearize(*batch, micro_batch_size=2), names)
    for one, other in zip(found, wanted, strict=True):
        assert one.block == other.block
        assert one.frobenius == pytest.approx(other.frobenius, rel=1e-7, abs=1e-7, nan_ok=True)
        assert one.spectrum == pytest.approx(other.spectrum, rel=1e-7, abs=1e-7, nan_ok=True)


def test_errors_are_in_the_order_that_they_must_have() -> None:
    lin = evalkit.linearize(*CASES["token_labels"].make())
    kfac, ekfac, kpsvd, own = (
        f"{name}:labels=exact" for name in ("kfac", "ekfac", "kpsvd", "block")
    )
    rows = matrix_errors(lin, [kfac, ekfac, kpsvd, own])
    worse = by_block(rows, kfac)
    for better in (ekfac, kpsvd):
        for block, row in by_block(rows, better).items():
            assert row.frobenius <= worse[block].frobenius * (1 + 1e-12) + row.high - row.low
        assert by_block(rows, better)[ALL].frobenius < worse[ALL].frobenius
    exact = by_block(rows, own)
    assert all(row.high < 1e-12 for block, row in exact.items() if block != WHOLE)
    assert exact[WHOLE].frobenius == pytest.approx(exact[WHOLE].off_diagonal, rel=1e-12)
    assert 0.1 < exact[WHOLE].off_diagonal < worse[WHOLE].frobenius
    assert math.isnan(worse[ALL].off_diagonal)


@pytest.mark.parametrize("small", [512, 0])
def test_what_is_exact_has_no_error(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample with one position, and a product; by Gram matrices to half the digits."""
    monkeypatch.setattr(distances, "SMALL", small)
    names = [f"{one}:labels=exact" for one in ("block", "kfac", "ekfac", "kpsvd", "shampoo")]
    draw, design = Draw(0), nn.Linear(3, 4, bias=False).double()
    a = draw.normal(5, 3)
    for lin in (
        evalkit.linearize(*CASES["one_sample"].make()),
        evalkit.linearize(design, a, draw.normal(5, 4), "gaussian"),
    ):
        for row in matrix_errors(lin, names):
            if row.block == WHOLE:
                continue
            assert row.low <= 1e-13
            assert row.high <= (1e-12 if row.route != "gram" and row.route != "mixed" else 1e-6)
            assert row.frobenius <= row.high


def test_probes_estimate_what_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """By exact rows, or by products with F where there are too many outputs for these."""
    lin = evalkit.linearize(*CASES["conv1d_groups"].make())
    names = ["kfac:labels=improved", "diagonal:labels=improved"]
    wanted = matrix_errors(lin, names)
    monkeypatch.setattr(distances, "SMALL", 0)
    monkeypatch.setattr(distances, "MOST", 0)
    monkeypatch.setattr(diagnosis, "MOST", 0)
    rows = matrix_errors(lin, names, probes=48)
    monkeypatch.setattr(diagnosis, "_exact", lambda lin: None)
    products = matrix_errors(lin, names, probes=48)
    assert WHOLE not in {row.block for row in rows}
    near = [row for row in wanted if row.block != WHOLE]
    for one, other, exact in zip(rows, products, near, strict=True):
        assert one.route == "probes"
        assert math.isnan(one.spectrum)
        assert one.frobenius == pytest.approx(other.frobenius, rel=1e-9)
        assert one.low < one.frobenius < one.high
        middle = (one.low + one.high) / 2
        assert abs(exact.frobenius - middle) <= 2 * (one.high - middle), one  # twice 95%
        assert one.frobenius == pytest.approx(exact.frobenius, rel=0.5)


def test_best_scales_are_those_of_the_dense_system() -> None:
    """For methods with blocks and without, to the least gamma that scales can give."""
    oracle = Oracle(CASES["mlp_bernoulli"].make())
    lin, g = oracle.lin, oracle.reference.gradient
    rows = oracle.rows(cotangents(oracle.reference, lin, "exact"))
    fisher = rows.T @ rows
    for method in ("sgd", "ief", "kfac:labels=exact"):
        found = [row for row in layer_scales(lin, [method], [1e-3]) if row.method == method]
        d = compute(method, lin, 1e-3).direction(lin)
        parts = []
        for row in found:
            places = [
                p.flatten() for name, p in oracle.places.items() if name.startswith(f"{row.block}.")
            ]
            part = torch.zeros_like(d)
            part[torch.cat(places)] = d[torch.cat(places)]
            parts.append(part)
        basis = torch.stack(parts, 1)
        c = torch.linalg.solve(basis.T @ fisher @ basis, basis.T @ g)
        best = basis @ c
        common = (d @ g) / (d @ fisher @ d)

        def gamma(x: Tensor) -> float:
            return float((x @ fisher @ x).sqrt() / (x @ g).abs())

        assert [row.scale for row in found] == pytest.approx(c.tolist(), rel=1e-7)
        assert [row.relative_scale for row in found] == pytest.approx(
            (c / common).tolist(), rel=1e-7
        )
        for row in found:
            assert row.gamma == pytest.approx(gamma(d), rel=1e-9)
            assert row.scaled_gamma == pytest.approx(gamma(best), rel=1e-9)
            assert row.scaled_efficiency == pytest.approx(lin.gamma_floor / gamma(best), rel=1e-9)
            assert row.efficiency <= row.scaled_efficiency


def test_a_wrong_scale_of_one_layer_is_mended_by_its_own_scale() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    d = compute("ief", lin, 0.0).direction(lin).double()
    values = {name: value.clone() for name, value in lin.by_name(d).items()}
    name = next(iter(values))
    values[name] *= 1e6

    def parts(of: dict[str, Tensor]) -> list[Tensor]:
        zero = {key: torch.zeros_like(value) for key, value in of.items()}
        return [lin.flattened({**zero, key: value}) for key, value in of.items()]

    right, wrong = best_scales(lin, parts(lin.by_name(d))), best_scales(lin, parts(values))
    assert wrong.gamma == pytest.approx(right.gamma, rel=1e-9)
    assert float(wrong.scales[0] * 1e6) == pytest.approx(float(right.scales[0]), rel=1e-6)


def test_a_layer_that_moves_nothing_has_no_scale() -> None:
    rows = layer_scales(evalkit.linearize(*CASES["unused_parameters"].make()), ["sgd"], [1e-3])
    scales = {row.block: row.scale for row in rows}
    assert math.isnan(scales["spare"])
    assert math.isfinite(scales["hidden"])


def test_products_with_blocks_are_those_of_their_matrices() -> None:
    """On several matrices at once, whatever the form of the block."""
    lin = evalkit.linearize(*CASES["conv1d_groups"].make())
    for name in ("block", "kfac", "ekfac", "diagonal", "kpsvd"):
        matrix = compute(f"{name}:labels=empirical", lin, 1e-2).matrix
        for names, solver in matrix.blocks.items():
            x = Draw(1).normal(2, 3, *matrix.pulled.blocks[names].shape)
            several = solver.product(x)
            assert several.shape == x.shape
            torch.testing.assert_close(several[1, 2], solver.product(x[1, 2]))
            y = Draw(2).normal(*x.shape)
            inner = (y * several).sum(), (x * solver.product(y)).sum()  # symmetric
            torch.testing.assert_close(*inner)


# --- the command -----------------------------------------------------------------------------
