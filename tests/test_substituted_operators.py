"""Each operator that is substituted, beside torch's own."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from evalkit.evaluation.substitutes import substituted
from tests.support.dense import assert_near
from tests.support.table import Draw

POINTS = Draw(4).normal(3, 5)
BAGS = {"input": torch.tensor([0, 3, 3, 1, 2, 2, 5]), "offsets": torch.tensor([0, 3, 3, 6])}

OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "embedding_bag": lambda w: F.embedding_bag(BAGS["input"] % 3, w, BAGS["offsets"]),
    "embedding_bag of the largest": lambda w: F.embedding_bag(
        weight=w, input=torch.tensor([[0, 1, 1], [2, 2, 2]]), mode="max", padding_idx=2
    ),
    "embedding_bag to a last offset": lambda w: F.embedding_bag(
        BAGS["input"] % 3, w, torch.tensor([0, 2, 2, 7]), mode="sum", include_last_offset=True
    ),
    "embedding_bag without bags": lambda w: F.embedding_bag(
        BAGS["input"][:0], w, torch.zeros(2, dtype=torch.long), mode="max"
    ),
    "hardsigmoid": lambda w: F.hardsigmoid(3 * w),
    "hardsigmoid in place": lambda w: (1 * F.hardsigmoid(a := 3 * w, inplace=True)) + a,
    "cdist": lambda w: torch.cdist(w, w.flip(1)[:2]),
    "cdist of norm one": lambda w: torch.cdist(w, w.roll(1), 1.0),
    "cdist of infinite norm": lambda w: torch.cdist(w, w.roll(1), p=torch.inf),
    "cdist by products": lambda w: torch.cdist(w.repeat(9, 1) + 1, w.roll(1)),
    "cdist of batches": lambda w: torch.cdist(w.expand(2, 1, 3, 5), w.sin().expand(4, 3, 5)),
    "attention": lambda w: F.scaled_dot_product_attention(w[None], w[None], w.sin()[None]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_what_stands_in_for_them(name: str) -> None:
    """Values and gradients, with torch's own backward as the reference."""
    runs = []
    for plain in (False, True):
        w = POINTS.clone().requires_grad_()
        with substituted() if plain else torch.enable_grad():
            value = OPERATORS[name](w)
        gradient = torch.autograd.grad(
            value, w, torch.ones_like(value).cumsum(0), create_graph=plain
        )
        runs.append((value, gradient[0]))
        if plain:
            assert torch.autograd.gradgradcheck(_under(OPERATORS[name]), (w,))
    # Torch's own hard sigmoid takes a sixth in float32.
    tolerance = 1e-6 if name.startswith("hardsigmoid") else 1e-10
    for found, expected in zip(runs[1], runs[0], strict=True):
        assert_near(found.detach(), expected.detach(), tolerance)


def _under(operator: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(w: Tensor) -> Tensor:
        with substituted():
            return operator(w)

    return run


def test_calls_that_torch_refuses_are_left_to_it() -> None:
    w, rows = POINTS, torch.tensor([[0, 1], [2, 0]])
    with substituted():
        for options, kind, word in (
            ({"offsets": torch.tensor([0])}, ValueError, "offsets"),
            ({"mode": "most"}, ValueError, "mode has"),
            ({"per_sample_weights": torch.ones(2, 2), "mode": "mean"}, NotImplementedError, "sum"),
            ({"window": 3}, TypeError, "window"),
        ):
            with pytest.raises(kind, match=word):
                F.embedding_bag(rows, w, **options)
        with pytest.raises(RuntimeError, match="step must be nonzero"):
            F.embedding_bag(rows[:, :0], w)
        with pytest.raises(RuntimeError, match="offsets"):
            F.embedding_bag(rows[0], w, torch.tensor([1]))
        with pytest.raises(RuntimeError, match="number of columns"):
            torch.cdist(w, w[:, :2])


def test_what_torch_calls_is_put_back() -> None:
    modules = [
        sys.modules[f.__module__] for f in (flex_attention, torch.utils.checkpoint.checkpoint)
    ]
    before = [dict(vars(module)) for module in modules]
    with pytest.raises(ZeroDivisionError), substituted(recomputing=False):
        raise ZeroDivisionError
    assert [dict(vars(module)) for module in modules] == before
    assert torch._C._get_graph_executor_optimize()
