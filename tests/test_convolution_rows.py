"""Per-sample gradients of convolutions, formed without patches, against one backward per sample."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from evalkit.layers.convolution import CONVOLUTIONS, FEWEST_CHANNELS, ConvolutionRows
from evalkit.layers.rows import GradientRows, OuterProducts
from tests.support.blocks import at_most
from tests.support.drawn_rows import assert_inner, choose, every_route, inner, with_or_without_bias
from tests.support.table import Draw

CALLS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@dataclass(frozen=True)
class Case:
    """A convolution of (N, inside, *room) with K cotangents per sample."""

    inside: int
    outside: int
    kernel: tuple[int, ...]
    room: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1


CASES = {
    "plain": Case(8, 4, (3, 3), (5, 6), padding=1),
    "strided": Case(8, 5, (3, 3), (7, 6), stride=2, padding=1),
    "one output position": Case(9, 4, (2, 3), (2, 3)),
    "one by one": Case(8, 3, (1, 1), (3, 2)),
    "dilated": Case(8, 2, (2, 2), (5, 5), dilation=2),
    "kernel that misses an edge": Case(8, 3, (2, 2), (6, 7), stride=3),
    "grouped": Case(8, 6, (3, 2), (4, 5), padding=1, groups=2),
    "depthwise": Case(8, 8, (3, 3), (4, 4), padding=1, groups=8),
    "depthwise, several each": Case(8, 24, (2, 2), (3, 4), stride=2, groups=8),
    "one axis": Case(8, 5, (3,), (9,), stride=2, padding=1),
    "three axes": Case(8, 3, (2, 1, 2), (3, 2, 4), padding=1),
    "many channels": Case(16, 40, (2, 2), (3, 3)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def rows_of(
    case: Case, draws: int, samples: int, bias: bool, seed: int
) -> tuple[GradientRows, Tensor]:
    """Rows as the layer makes them, and the same by one backward each: (K N, size)."""
    draw, call = Draw(seed), CALLS[len(case.room)]
    x = draw.normal(samples, case.inside, *case.room)
    shape = (case.outside, case.inside // case.groups, *case.kernel)
    weight = Draw(3).normal(*shape).requires_grad_()
    offset = Draw(4).normal(case.outside).requires_grad_()
    settings = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    outputs = call(x, weight, offset, **settings, groups=case.groups)
    d = draw.normal(draws, *outputs.shape)
    layer = CONVOLUTIONS[call](x, weight, offset, **settings, groups=case.groups)
    assert layer is not None
    places = [weight, offset] if bias else [weight]
    found = []
    for cotangents in d:
        for n in range(samples):
            one = torch.autograd.grad(outputs[n], places, cotangents[n], retain_graph=True)
            found.append(torch.cat([part.flatten() for part in one]))
    return layer.weight_rows(d, bias), torch.stack(found)


@every_case
@every_route
@with_or_without_bias
@pytest.mark.parametrize("elements", [1, 300, 1 << 20])
def test_inner_products(
    case: Case, route: str, bias: bool, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(route, monkeypatch)
    budget = at_most(elements)
    left, rows = rows_of(case, 2, 3, bias, 0)
    right, rows_ = rows_of(case, 1, 4, bias, 1)
    assert isinstance(left, ConvolutionRows)
    assert_inner(inner(left, left, budget), rows, rows)
    assert_inner(inner(left, right, budget), rows, rows_)
    assert_inner(inner(right, left, budget), rows_, rows)


@every_case
@with_or_without_bias
def test_joined_rows_go_with_those_of_a_single_call(case: Case, bias: bool) -> None:
    parts, each = zip(*(rows_of(case, 2, 3, bias, seed) for seed in (0, 1)), strict=True)
    other, rows = rows_of(case, 1, 2, bias, 2)
    joined, total = ConvolutionRows.joined(parts), each[0] + each[1]
    assert_inner(inner(joined, joined), total, total)
    assert_inner(inner(joined, other), total, rows)
    assert_inner(inner(other, joined), rows, total)
    assert ConvolutionRows.joined(parts[:1]) is parts[0]


def test_patches_are_taken_for_few_channels() -> None:
    few = Case(FEWEST_CHANNELS - 1, 4, (3, 3), (5, 5))
    rows, expected = rows_of(few, 2, 3, True, 0)
    assert isinstance(rows, OuterProducts)
    assert_inner(inner(rows, rows), expected, expected)


def test_single_precision_rows_are_as_exact_as_a_backward() -> None:
    """Rows are formed in the model's precision and multiplied in float64."""
    case = CASES["many channels"]
    exact, expected = rows_of(case, 1, 3, True, 0)
    assert isinstance(exact, ConvolutionRows)
    layer = exact.layer
    single = CONVOLUTIONS[functional.conv2d](
        layer.inputs.float(), layer.weight.detach().float(), None
    )
    assert single is not None
    rows = single.weight_rows(exact.d.float(), True)
    actual = inner(rows, rows)
    torch.testing.assert_close(actual, expected @ expected.T, rtol=1e-6, atol=1e-5)
