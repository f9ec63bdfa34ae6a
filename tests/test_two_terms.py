"""Two Kronecker products for each block against dense decompositions, and exact relations."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit import curvature
from evalkit.curvature import Source, preconditioned
from evalkit.curvature.pulled import pulled
from evalkit.curvature.singular import leading
from evalkit.curvature.two_terms import TwoTerms
from evalkit.updates import compute
from tests.support.cases import CASES, Draw
from tests.support.structured import Oracle
from tests.support.structured_cases import near
from tests.support.structures import full, kfac_factors, rearranged
from tests.support.table import initialise
from tests.support.two_terms import leading_two, second, symmetric_basis, symmetric_pairs

STRUCTURES: dict[str, Any] = {
    "deflation": curvature.deflation,
    "lanczos": curvature.lanczos,
    "kfac-corrected": curvature.kfac_corrected,
    "reduce": partial(curvature.kfac_corrected, sharing="reduce"),
}


def direction(lin: evalkit.Linearization, text: str, damping: float = 1e-2) -> Tensor:
    return evalkit.update(text, lin, damping=damping)


def formed(block: TwoTerms) -> Tensor:
    """The matrices of a block, (groups, out in, out in), by products with units."""
    groups, out, inside = (len(block.out.vectors), *(one.vectors.shape[1] for one in sides(block)))
    units = torch.eye(out * inside, dtype=torch.float64).view(-1, 1, out, inside)
    columns = [block.product(unit.expand(groups, -1, -1)).flatten(1) for unit in units]
    return torch.stack(columns, 2)


def sides(block: TwoTerms) -> tuple[Any, Any]:
    return block.out, block.inside


@pytest.mark.parametrize("name", ["token_labels", "conv1d_groups", "one_sample"])
@pytest.mark.parametrize("labels", ["exact", "improved"])
def test_matrices_are_the_dense_ones_and_nearer_than_their_first_terms(
    name: str, labels: str
) -> None:
    oracle = Oracle(CASES[name].make())
    oracle.direction("block", 1.0, labels)
    layers = oracle.known[(labels,)][1]
    found = pulled(oracle.lin, Source(labels))
    made = {kind: make(found) for kind, make in STRUCTURES.items()}
    for names, layer in layers.items():
        matrices = {kind: formed(blocks[names]) for kind, blocks in made.items()}
        for group, (a, d) in enumerate(zip(layer.a, layer.d, strict=True)):
            fisher, sizes = full(a, d), (d.shape[-1], a.shape[-1])
            r = rearranged(fisher, *sizes)
            (b1, a1), (b2, a2) = leading_two(r, *sizes)
            one = torch.kron(b1, a1)
            assert near(matrices["deflation"][group], one + torch.kron(b2, a2), 1e-10)
            assert near(matrices["lanczos"][group], matrices["deflation"][group], 1e-10)
            assert error(matrices["deflation"][group], fisher) <= error(one, fisher) + 1e-13
            for kind, sharing in (("kfac-corrected", "expand"), ("reduce", "reduce")):
                first = kfac_factors(a, d, sharing)
                one = torch.kron(*first)
                left = rearranged(fisher - one, *sizes)
                wanted = one + torch.kron(*second(left, *sizes, float(one.norm())))
                assert near(matrices[kind][group], wanted, 1e-10)
                assert error(matrices[kind][group], fisher) <= error(one, fisher) + 1e-13


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_second_terms_are_indefinite_and_help() -> None:
    found = pulled(evalkit.linearize(*CASES["mlp_categorical"].make()), Source("exact"))
    for blocks in (curvature.deflation(found), curvature.kfac_corrected(found)):
        values = [torch.linalg.eigvalsh(side.second) for b in blocks.values() for side in sides(b)]
        assert sum(bool((one < -1e-3 * one.abs().max()).any()) for one in values) > 2
        assert all(near(side.second.mT, side.second) for b in blocks.values() for side in sides(b))


def test_a_product_design_has_no_second_term() -> None:
    draw, model = Draw(0), nn.Linear(3, 4, bias=False).double()
    a, d = draw.normal(5, 3), draw.normal(6, 4)
    inputs, wanted = a.repeat_interleave(6, 0), d.repeat(5, 1)
    lin = evalkit.linearize(model, inputs, model(inputs).detach() - wanted, "gaussian")
    for structure, make in STRUCTURES.items():
        (block,) = make(pulled(lin, Source("empirical"))).values()
        assert not block.out.second.any(), structure
        assert near(formed(block)[0], torch.kron(d.T @ d, a.T @ a))
    pi = direction(lin, "kfac:labels=empirical:style=pi")
    for text in ("deflation", "lanczos", "kfac-corrected", "kpsvd:style=pi"):
        assert near(direction(lin, f"{text}:labels=empirical"), pi)


@pytest.mark.parametrize(("inside", "out"), [(4, 1), (1, 3)])
def test_one_output_or_one_input_has_no_second_term(inside: int, out: int) -> None:
    draw, model = Draw(0), nn.Linear(inside, out, bias=False).double()
    initialise(model, draw)
    lin = evalkit.linearize(model, draw.normal(7, inside), draw.normal(7, out), "gaussian")
    for name, other in (("deflation", "kpsvd"), ("lanczos", "kpsvd"), ("kfac-corrected", "kfac")):
        wanted = direction(lin, f"{other}:labels=empirical:style=pi")
        assert near(direction(lin, f"{name}:labels=empirical"), wanted)


@pytest.mark.parametrize("name", ["mlp_bernoulli", "module_used_twice", "duplicate_samples"])
def test_both_ways_to_the_nearest_two_terms_agree(name: str) -> None:
    lin = evalkit.linearize(*CASES[name].make())
    for settings in ("labels=exact", "labels=improved:floor=0.5", "labels_per_sample=2"):
        one, other = (direction(lin, f"{way}:{settings}", 1e-4) for way in ("deflation", "lanczos"))
        assert near(one, other)


def test_what_is_floored_is_told_by_layer() -> None:
    oracle = Oracle(CASES["mlp_categorical"].make())
    oracle.direction("block", 1.0, "exact")
    seen = []
    for floor, damping in ((0.1, 1e-6), (0.9, 1e-2), (1e-3, 1e-2)):
        make = partial(curvature.deflation, floor=floor)
        found = preconditioned(oracle.lin, damping, Source("exact"), ("own", floor), make)
        for names, layer in oracle.known[("exact",)][1].items():
            wanted = floored(layer.a[0], layer.d[0], damping, floor)
            assert found.floored[names] == pytest.approx(wanted, abs=1e-12)
            seen.append(wanted)
    assert 0 in seen
    assert max(seen) > 0.1
    one = preconditioned(oracle.lin, 1e-2, Source("exact"), "kfac", curvature.kfac)
    assert set(one.floored.values()) == {0.0}


def floored(a: Tensor, d: Tensor, damping: float, floor: float) -> float:
    """The part of 1 + b a^T below the floor."""
    sizes = d.shape[-1], a.shape[-1]
    (b1, a1), (b2, a2) = leading_two(rearranged(full(a, d), *sizes), *sizes)
    pi = float(((a1.trace() / sizes[1]) / (b1.trace() / sizes[0])).sqrt())
    left = b1 + damping**0.5 / pi * torch.eye(sizes[0]).double()
    right = a1 + damping**0.5 * pi * torch.eye(sizes[1]).double()
    db, da = (
        torch.linalg.eigvals(torch.linalg.solve(one, two)).real
        for one, two in ((left, b2), (right, a2))
    )
    return float((1 + torch.outer(db, da) < floor).double().mean())


@cache
def rounded() -> Oracle:
    """A batch in float32."""
    return Oracle(CASES["mlp_categorical"].make(torch.float32))


@pytest.mark.parametrize("method", ["deflation", "lanczos", "kfac-corrected"])
@pytest.mark.parametrize("floor", [0.1, 0.9])
def test_stated_movements_are_those_of_float32(method: str, floor: float) -> None:
    """What is floored, too: the direction moves by what is said, and by no small part of it."""
    oracle, ratios = rounded(), []
    lin = evalkit.linearize(*oracle.batch, dtype="float32")
    g = oracle.reference.gradient
    for labels in ("exact", "empirical"):
        for damping in (1e-1, 1e-2, 1e-3):
            found = compute(method, lin, damping, labels=labels, floor=floor)
            wanted = oracle.direction(method, damping, labels, floor=floor)
            change = found.direction(lin).double() - wanted
            assert float(change.norm()) <= 8 * found.rounding.moved + 1e-6 * float(wanted.norm())
            slope = abs(float(change @ g))
            assert slope <= 8 * found.rounding.slope + 1e-6 * float(wanted @ g)
            drawn = found.rounding.deviation().norm
            ratios.append(float(drawn) / found.rounding.moved)
    assert all(0.3 < ratio < 3 for ratio in ratios)


def random_map(out: int, inside: int, singular: list[float]) -> Tensor:
    """R of symmetric matrices in coordinates, (dimensions of out, of inside)."""
    left, right = (symmetric_basis(n) for n in (out, inside))
    draw = Draw(0)
    u, _ = torch.linalg.qr(draw.normal(len(left), len(singular)))
    v, _ = torch.linalg.qr(draw.normal(len(right), len(singular)))
    return left.T @ (u * torch.tensor(singular).double()) @ v.T @ right


@pytest.mark.parametrize("singular", [[3.0, 2.0, 1.9, 0.5], [3.0, 3.0, 1.0], [2.0, 1e-4], [1.0]])
def test_singular_pairs_of_maps_with_ties_and_without_a_second(singular: list[float]) -> None:
    matrix, draw = random_map(5, 12, singular), Draw(1)
    starts = [(one + one.mT)[None] for one in (draw.normal(12, 12) for _ in range(3))]
    found = leading(
        lambda x: (matrix @ x.reshape(-1, 144).T).T.view(-1, 5, 5),
        lambda y: (matrix.T @ y.reshape(-1, 25).T).T.view(-1, 12, 12),
        starts,
        2,
    )
    wanted = [value for value, _, _ in symmetric_pairs(matrix, 5, 12)]
    assert found.squares[:, 0].sqrt().tolist() == pytest.approx(wanted[:2], rel=1e-10, abs=1e-13)
    both = torch.einsum("iab,icd->abcd", found.left[:, 0], found.right[:, 0]).reshape(25, 144)
    u, s, v = torch.linalg.svd(matrix)
    assert near(both, (u[:, :2] * s[:2]) @ v[:2], 1e-10)
    assert bool(found.gaps[0, 0] > 1e10) == (singular[:2] == [3.0, 3.0])
