"""Per-sample gradients from a seed, their rows formed entry by entry, and their inner products."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import evalkit.layers.work
from evalkit.layers.budget import BUDGET, Budget
from evalkit.layers.rows import Formed, GradientRows, Lookups, OuterProducts, mirror
from tests.support.table import Draw

ROUTES = {"pairs": (0, 1), "formed": (1, 0)}
"""Costs that make ``add_inner`` choose the route."""


class Sizes(NamedTuple):
    groups: int
    draws: int
    samples: int
    positions: int
    draws_: int
    samples_: int
    positions_: int
    inside: int
    outside: int


every_route = pytest.mark.parametrize("route", ROUTES)

with_or_without_bias = pytest.mark.parametrize("bias", [False, True])


def outer_products(draw: Draw, sizes: Sizes, bias: bool) -> tuple[OuterProducts, OuterProducts]:
    """Rows of K cotangents for N samples at T positions, and of K' for N' at S."""
    g, k, n, t, j, m, s, inside, outside = sizes
    left = OuterProducts(draw.normal(g, n, t, inside), draw.normal(g, k, n, t, outside), bias)
    right = OuterProducts(draw.normal(g, m, s, inside), draw.normal(g, j, m, s, outside), bias)
    return left, right


def explicit_outer(rows: OuterProducts) -> Tensor:
    """sum_t d_t a_t^T of every group, and sum_t d_t for a bias, one row at a time: (K N, size)."""
    groups, draws, samples = rows.d.shape[:3]
    found = []
    for k, n in itertools.product(range(draws), range(samples)):
        parts = []
        for g in range(groups):
            a, d = rows.a[g, n].double(), rows.d[g, k, n].double()
            parts += [torch.outer(y, x) for y, x in zip(d, a, strict=True)]
        matrices = torch.stack(parts).unflatten(0, (groups, -1)).sum(1)
        extra = rows.d[:, k, n].double().sum(1) if rows.bias else torch.zeros(0)
        found.append(torch.cat([matrices.flatten(), extra.flatten()]))
    return torch.stack(found)


def explicit_lookups(rows: Lookups, size: int) -> Tensor:
    """The table with each d added to the row of its index, one lookup at a time."""
    draws, samples, positions, width = rows.d.shape
    table = torch.zeros(draws, samples, size, width, dtype=torch.float64)
    for k, n, t in itertools.product(range(draws), range(samples), range(positions)):
        table[k, n, int(rows.indices[n, t])] += rows.d[k, n, t].double()
    return table.flatten(2).flatten(0, 1)


def sizes_of(rows: GradientRows) -> tuple[int, int]:
    """K and N."""
    if isinstance(rows, OuterProducts):
        return rows.d.shape[1], rows.d.shape[2]
    values = rows.values if isinstance(rows, Formed) else rows.d  # type: ignore[attr-defined]
    return values.shape[0], values.shape[1]


def inner(left: GradientRows, right: GradientRows, budget: Budget = BUDGET) -> Tensor:
    """What ``add_inner`` adds to numbers that are there already: (K N, K' N')."""
    (k, n), (j, m) = sizes_of(left), sizes_of(right)
    before = Draw(9).normal(k, n, j, m)
    total = before.clone()
    left.add_inner(total, right, budget)
    total -= before
    if left is right:
        mirror(total)
    return total.reshape(k * n, j * m)


def assert_inner(actual: Tensor, left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(actual, left @ right.T, rtol=1e-11, atol=1e-11)


def choose(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evalkit.layers.work, "pair_costs", lambda *_: ROUTES[route])


def lookups(draw: Draw, high: int, shape: tuple[int, int, int, int], start: int = 0) -> Lookups:
    """K cotangents, N samples, T lookups among ``high`` entries, of a width."""
    k, n, t, width = shape
    indices = start + draw.integers(high, n, t)
    return Lookups(indices, draw.normal(k, n, t, width), start + high)
