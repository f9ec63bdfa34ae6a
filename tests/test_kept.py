"""Output gradients that a Gram matrix brought serve every sum of its per-sample gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import evalkit
from tests.support.cases import CASES
from tests.support.dense import assert_near
from tests.support.layer_cases import FALLBACK
from tests.support.table import Draw

NAMES = [name for name in FALLBACK if not FALLBACK[name]][::3]


def weights_of(lin: evalkit.Linearization, seed: int) -> Tensor:
    """Weights as near-zero dampings have them: of both signs, and up to 1e12."""
    signs = Draw(seed).normal(lin.num_samples)
    return signs * 10.0 ** (12 * Draw(seed + 1).normal(lin.num_samples).abs().clamp_max(1))


def terms_of(lin: evalkit.Linearization) -> list[tuple[Tensor, Tensor]]:
    """Two sums of per-sample gradients, one of them of cotangents that differ by 1e9."""
    r = lin.logit_gradients
    uneven = r.flip(-1) * torch.logspace(0, -9, len(r)).view(-1, *[1] * (r.dim() - 1)).to(r)
    return [(r, weights_of(lin, 1)), (uneven, weights_of(lin, 3))]


def summed(terms: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([w.view(-1, *[1] * (c.dim() - 1)) * c for c, w in terms]).sum(0)


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_summed_cotangents(name: str) -> None:
    lin = evalkit.linearize(*CASES[name].make())
    terms = terms_of(lin)
    lin.gram_of(torch.stack([c for c, _ in terms]))
    assert lin._kept.product(terms) is not None
    assert_near(lin.weighted_product(terms), lin.kernel_product(summed(terms)), 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_gram_matrix_brings_the_product_of_the_gradient(name: str) -> None:
    expected = evalkit.linearize(*CASES[name].make()).gradient_jvp
    lin = evalkit.linearize(*CASES[name].make())
    assert lin.gram.isfinite().all()
    assert lin._routed.gradient_jvp is lin.gradient_jvp
    assert_near(lin.gradient_jvp, expected, 1e-9)


def test_cotangents_whose_inner_products_nobody_asked_for() -> None:
    lin = evalkit.linearize(*CASES[NAMES[0]].make())
    terms = terms_of(lin)
    assert lin.gram.isfinite().all()
    assert lin._kept.product(terms) is None
    assert_near(lin.weighted_product(terms), lin.kernel_product(summed(terms)), 1e-9)


def test_cotangents_are_kept_once() -> None:
    lin = evalkit.linearize(*CASES[NAMES[0]].make())
    for _ in range(3):
        assert lin.gram_of(lin.logit_gradients.unsqueeze(0)).isfinite().all()
    assert len(lin._kept._kept) == 1


def test_cotangents_that_a_caller_changed() -> None:
    lin = evalkit.linearize(*CASES[NAMES[0]].make())
    ((c, w),) = terms_of(lin)[1:]
    lin.gram_of(c.unsqueeze(0))
    c *= 2
    assert_near(lin.weighted_product([(c, w)]), lin.kernel_product(summed([(c, w)])), 1e-9)


class Mixing(nn.Linear):
    """A layer in which every sample sees the first one too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.5 * x[:1])


def test_samples_that_influence_each_other_have_nothing_kept() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Mixing(4, 3)).double()
    lin = evalkit.linearize(model, Draw(1).normal(5, 3), Draw(2).integers(3, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert lin.gram.isfinite().all()
    terms = terms_of(lin)[:1]
    assert lin._kept.product(terms) is None
    assert_near(lin.weighted_product(terms), lin.kernel_product(summed(terms)), 1e-9)


def test_micro_batches_keep_nothing() -> None:
    batch = CASES[NAMES[0]].make()
    whole = evalkit.linearize(*batch)
    lin = evalkit.linearize(*batch, micro_batch_size=2)
    terms = terms_of(whole)
    lin.gram_of(torch.stack([c for c, _ in terms]))
    assert_near(lin.weighted_product(terms), whole.kernel_product(summed(terms)), 1e-9)
