"""Inner products of per-sample gradients against rows that are formed entry by entry."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evalkit.layers.rows import Formed, Lookups, OuterProducts
from evalkit.layers.work import pair_costs
from tests.support.blocks import at_most
from tests.support.dense import assert_near
from tests.support.drawn_rows import (
    ROUTES,
    Sizes,
    assert_inner,
    choose,
    every_route,
    explicit_lookups,
    explicit_outer,
    inner,
    lookups,
    outer_products,
    with_or_without_bias,
)
from tests.support.table import Draw

SIZES = [
    Sizes(1, 1, 1, 1, 1, 1, 1, 1, 1),
    Sizes(1, 1, 4, 1, 1, 4, 1, 3, 2),
    Sizes(1, 1, 4, 1, 3, 2, 1, 3, 2),
    Sizes(1, 3, 2, 1, 1, 4, 5, 2, 3),
    Sizes(1, 2, 3, 4, 3, 5, 2, 4, 3),
    Sizes(3, 2, 3, 4, 3, 2, 6, 2, 2),
    Sizes(2, 4, 1, 3, 1, 5, 1, 1, 7),
    Sizes(4, 3, 5, 2, 2, 3, 2, 5, 1),
]
every_size = pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "-".join(map(str, s)))
blocks = pytest.mark.parametrize("elements", [1, 50, 1 << 24])


# --- outer products --------------------------------------------------------------------------


@every_size
@every_route
@with_or_without_bias
@blocks
def test_outer_products(
    sizes: Sizes, route: str, bias: bool, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(route, monkeypatch)
    budget = at_most(elements)
    left, right = outer_products(Draw(0), sizes, bias)
    rows, rows_ = explicit_outer(left), explicit_outer(right)
    assert_inner(inner(left, right, budget), rows, rows_)
    assert_inner(inner(right, left, budget), rows_, rows)
    assert_inner(inner(left, left, budget), rows, rows)
    assert_inner(inner(right, right, budget), rows_, rows_)


@every_size
@with_or_without_bias
def test_outer_products_written_out(sizes: Sizes, bias: bool) -> None:
    rows, _ = outer_products(Draw(0), sizes, bias)
    explicit = explicit_outer(rows).unflatten(0, rows.d.shape[1:3])
    torch.testing.assert_close(rows.formed(slice(0, 1)), explicit[:, :1])
    torch.testing.assert_close(rows.formed(slice(1, None)), explicit[:, 1:])


@pytest.mark.parametrize("seed", range(12))
@with_or_without_bias
def test_both_routes_agree_at_random_sizes(
    seed: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Draw(seed)
    sizes = Sizes(*(1 + draw.integers(6, 9)).tolist())
    left, right = outer_products(draw, sizes, bias)
    results = []
    for route in ROUTES:
        choose(route, monkeypatch)
        results.append([inner(left, right), inner(left, left), inner(right, right)])
    for pairs, formed in zip(*results, strict=True):
        torch.testing.assert_close(pairs, formed, rtol=1e-11, atol=1e-11)


@every_route
@pytest.mark.parametrize("positions", [1, 4])
def test_outer_products_in_float32_are_multiplied_in_float64(
    route: str, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients that are formed have the digits of sums over positions in float32."""
    choose(route, monkeypatch)
    exact, _ = outer_products(Draw(0), Sizes(2, 2, 3, positions, 1, 1, 1, 3, 2), True)
    single = OuterProducts(exact.a.float(), exact.d.float(), True)
    rows = explicit_outer(single)
    formed = rows @ rows.T
    tolerance = 1e-6 if route == "formed" else 1e-12
    assert_near(inner(single, single), formed, tolerance)


@every_route
@with_or_without_bias
def test_joined_outer_products(route: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight used three times, at different numbers of positions."""
    choose(route, monkeypatch)
    draw = Draw(3)
    parts = [
        OuterProducts(draw.normal(2, 3, t, 4), draw.normal(2, 2, 3, t, 5), bias) for t in (1, 4, 2)
    ]
    joined = OuterProducts.joined(parts)
    rows = torch.stack([explicit_outer(part) for part in parts]).sum(0)
    assert_inner(inner(joined, joined), rows, rows)
    assert_inner(inner(parts[1], joined), explicit_outer(parts[1]), rows)
    assert OuterProducts.joined(parts[:1]) is parts[0]


@pytest.mark.parametrize(
    ("left", "right", "inside", "cheaper"),
    [
        ((1, 1, 8, 1, 50), (1, 1, 8, 1, 50), 60, "pairs"),  # an MLP
        ((1, 1, 8, 64, 4), (1, 1, 8, 64, 4), 9, "formed"),  # a convolution on a large image
        ((16, 1, 8, 64, 1), (16, 1, 8, 64, 1), 9, "formed"),  # the same, depthwise
        ((1, 10, 8, 1, 50), (1, 1, 8, 1, 50), 60, "pairs"),
    ],
)
def test_the_cheaper_route(
    left: tuple[int, ...], right: tuple[int, ...], inside: int, cheaper: str
) -> None:
    """Multiplications counted from the shapes of the matrix products."""
    g, k, n, t, outside = left
    _, j, m, s, _ = right
    pairs, formed = pair_costs(left, right, inside)
    assert pairs == g * (n * t * m * s * inside + k * n * t * j * m * s * outside)
    one_side, other_side = k * n * t * inside * outside, j * m * s * inside * outside
    assert formed == g * (one_side + other_side + k * n * j * m * inside * outside)
    assert ("pairs" if pairs <= formed else "formed") == cheaper


# --- lookups ---------------------------------------------------------------------------------


@pytest.mark.parametrize("high", [1, 3, 50])
@pytest.mark.parametrize(
    ("shape", "shape_"),
    [
        ((1, 1, 1, 1), (1, 1, 1, 1)),
        ((1, 4, 3, 2), (1, 4, 3, 2)),
        ((3, 2, 5, 4), (1, 6, 2, 4)),
        ((2, 5, 1, 3), (4, 3, 7, 3)),
    ],
)
@pytest.mark.parametrize("cost", [0, 16, 1 << 40])  # all by pairs, the cheaper, none
@blocks
def test_lookups(
    cost: int,
    high: int,
    shape: tuple[int, int, int, int],
    shape_: tuple[int, int, int, int],
    elements: int,
) -> None:
    budget = replace(at_most(elements), pair=cost)
    draw = Draw(high)
    left, right = lookups(draw, high, shape), lookups(draw, high + 1, shape_)
    rows, rows_ = explicit_lookups(left, 60), explicit_lookups(right, 60)
    assert_inner(inner(left, right, budget), rows, rows_)
    assert_inner(inner(right, left, budget), rows_, rows)
    assert_inner(inner(left, left, budget), rows, rows)


def test_lookups_of_other_entries_have_no_inner_product() -> None:
    draw = Draw(0)
    left, right = lookups(draw, 4, (2, 3, 2, 2)), lookups(draw, 4, (1, 2, 3, 2), start=4)
    assert float(inner(left, right).abs().max()) <= 1e-15


def test_lookups_that_share_the_last_entry_alone() -> None:
    """The places of all other entries lie outside of what both sides look up."""
    d, e = Draw(0).normal(1, 2, 2, 3), Draw(1).normal(1, 2, 2, 3)
    left = Lookups(torch.tensor([[0, 9], [2, 3]]), d, 12)
    right = Lookups(torch.tensor([[9, 9], [11, 4]]), e, 12)
    assert_inner(inner(left, right), explicit_lookups(left, 12), explicit_lookups(right, 12))


def test_joined_lookups() -> None:
    draw = Draw(4)
    parts = [lookups(draw, 5, (2, 3, t, 4)) for t in (1, 4, 2)]
    joined = Lookups.joined(parts)
    rows = torch.stack([explicit_lookups(part, 5) for part in parts]).sum(0)
    assert_inner(inner(joined, joined), rows, rows)
    assert_inner(inner(joined, parts[2]), rows, explicit_lookups(parts[2], 5))


# --- rows that are given ---------------------------------------------------------------------


def test_formed_rows() -> None:
    draw = Draw(5)
    left, right = Formed(draw.normal(2, 3, 4)), Formed(draw.normal(1, 5, 4))
    assert_inner(inner(left, right), left.values.flatten(0, 1), right.values.flatten(0, 1))
    joined = Formed.joined([left, Formed(draw.normal(2, 3, 4)), left])
    assert_inner(inner(joined, left), joined.values.flatten(0, 1), left.values.flatten(0, 1))
    assert Formed.joined([left]) is left
