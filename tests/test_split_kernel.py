"""J J^T c by rows: inputs and output gradients go over in the place of a weight's gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evalkit.group import Group
from evalkit.linearization import linearize
from evalkit.linearization.split import Split
from tests.support.dense import assert_near


class Twice(nn.Module):
    """A layer that is called two times, and one with several positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(32, 32), nn.Linear(32, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(self.layer(x).tanh())
        return self.head(torch.stack([hidden, hidden.square()], 1)).sum(1)


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 40), nn.Tanh(), nn.LayerNorm(40), nn.Linear(40, 3))


@pytest.mark.parametrize(
    ("build", "rows"),
    [(wide, {"0.weight", "3.weight"}), (Twice, {"layer.weight"})],
    ids=["wide", "twice"],
)
def test_products_by_rows_are_those_of_gradients(build, rows) -> None:
    torch.manual_seed(0)
    model = build().double()
    inputs, targets = torch.randn(2, 32).double(), torch.tensor([0, 2])
    split = Split(Group())
    expected, found = (
        linearize(model, inputs, targets),
        linearize(model, inputs, targets, split=split),
    )
    c = torch.randn(expected.logits.shape, dtype=torch.float64)
    terms = [(c, torch.rand(2).double()), (expected.logit_gradients, torch.rand(2).double())]
    assert_near(found.kernel_product(c), expected.jvp(expected.vjp(c)), 1e-12)
    assert_near(found.weighted_product(terms), expected.weighted_product(terms), 1e-12)
    cotangents = torch.stack([c for c, _ in terms])
    found.gram_of(cotangents)  # from now on its output gradients are kept
    assert_near(found.weighted_product(terms), expected.weighted_product(terms), 1e-12)
    assert split.kept(2).inputs.keys() == rows


def test_weights_with_fewer_numbers_than_rows_go_over_themselves() -> None:
    model = nn.Linear(3, 2).double()
    inputs, targets = torch.randn(7, 3).double(), torch.zeros(7, dtype=torch.long)
    split = Split(Group())
    lin = linearize(model, inputs, targets, split=split)
    c = torch.randn(7, 2).double()
    assert_near(lin.kernel_product(c), lin.jvp(lin.vjp(c)), 1e-12)
    assert not split.kept(2).inputs
