"""Theory that must hold at any batch.

Formulas: Wu, Yu, Zhang, Woodland, NeurIPS 2024 (arXiv 2406.06420).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import evalkit
from tests.support import dense
from tests.support.cases import CASES, Batch
from tests.support.chosen_cases import A_THIRD, linearized, reference, some_cases
from tests.support.dense import assert_near
from tests.support.table import Draw
from tests.support.vectors import cosine, random_vectors

OVERPARAMETERISED = ["mlp_categorical", "mlp_bernoulli", "mlp_gaussian", "convolution_group_norm"]


# --- the output Fisher matrix ----------------------------------------------------------------


@pytest.mark.parametrize("name", A_THIRD)
def test_the_trace_is_that_of_the_matrix(name: str) -> None:
    lin = linearized(name)
    traces = lin.likelihood.fisher_trace(lin.logits, lin.targets)
    roots = lin.likelihood.fisher_root(lin.logits, lin.targets)
    assert_near(traces, roots.square().flatten(1).sum(1), 1e-12)
    curvature = reference(name).curvature
    assert_near(traces, curvature.diagonal(dim1=1, dim2=2).sum(1), 1e-8)


def test_a_vocabulary_of_thirty_thousand() -> None:
    """A matrix of all pairs of classes has 7 GB here for each position of a sample."""
    draw = Draw(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 30_000))
    targets = draw.integers(30_000, 4, 2)
    table = evalkit.score(model, draw.normal(4, 2, 4).float(), targets, damping=1e-3)
    assert table["error"].max() < 1e-3


# --- the indicator ---------------------------------------------------------------------------


@some_cases
def test_gamma_does_not_see_scale_or_sign(name: str) -> None:
    lin = linearized(name)
    for d in random_vectors(5, lin.num_params):
        base = evalkit.gamma(lin, d)
        for factor in (-1.0, 3.0, 1e-9, -1e12):
            assert evalkit.gamma(lin, factor * d) == pytest.approx(base, rel=1e-10)


def test_gamma_in_float32_survives_extreme_scales() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make(torch.float32))
    d = random_vectors(1, lin.num_params)[0].float()
    base = evalkit.gamma(lin, d)
    for factor in (1e-25, 1e25):
        assert evalkit.gamma(lin, factor * d) == pytest.approx(base, rel=1e-4)


@pytest.mark.parametrize("name", A_THIRD)
def test_gamma_is_never_below_the_floor(name: str) -> None:
    lin = linearized(name)
    for d in random_vectors(3, lin.num_params):
        assert evalkit.gamma(lin, d) >= lin.gamma_floor * (1 - 1e-9)
    for method in ("sgd", "ef", "ief", "ief-tikhonov", "sf"):
        d = evalkit.update(method, lin, damping=1e-3)
        assert evalkit.gamma(lin, d) >= lin.gamma_floor * (1 - 1e-9)


@pytest.mark.parametrize("name", OVERPARAMETERISED)
def test_natural_gradient_reaches_the_floor_with_enough_parameters(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    rows = expected.jacobian.flatten(0, 1)
    assert torch.linalg.matrix_rank(rows) == len(rows)
    found = evalkit.natural_gradient(lin, max_iterations=4000, tolerance=1e-11)
    assert evalkit.gamma(lin, found.solution) == pytest.approx(lin.gamma_floor, rel=1e-6)


@pytest.mark.parametrize("name", ["token_labels", "least_squares_more_samples_than_parameters"])
def test_natural_gradient_stays_above_the_floor_with_too_few_parameters(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    found = evalkit.natural_gradient(lin, max_iterations=4000, tolerance=1e-11)
    best = expected.gamma(dense.ngd(expected, 0.0))
    assert best > 1.01 * lin.gamma_floor
    assert evalkit.gamma(lin, found.solution) == pytest.approx(best, rel=1e-6)


def test_floor_in_closed_form() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    assert lin.gamma_floor == pytest.approx(float(lin.losses.expm1().sum() ** -0.5), rel=1e-10)
    batch = CASES["mlp_bernoulli"].make()
    lin = evalkit.linearize(*batch)
    p = torch.sigmoid(lin.logits)
    odds = (p - batch.targets).square() / (p * (1 - p))
    assert lin.gamma_floor == pytest.approx(float(odds.sum() ** -0.5), rel=1e-10)
    batch = CASES["mlp_gaussian"].make()
    lin = evalkit.linearize(*batch)
    squares = (lin.logits - batch.targets).square()
    assert lin.gamma_floor == pytest.approx(float(squares.sum() ** -0.5), rel=1e-10)


def test_no_slope_gives_infinite_gamma() -> None:
    lin = evalkit.linearize(*CASES["unused_parameters"].make())
    unused = (lin.gradient == 0).to(lin.gradient.dtype)
    assert unused.any()
    assert evalkit.gamma(lin, unused) == math.inf
    assert evalkit.gamma(lin, torch.zeros_like(unused)) == math.inf


# --- the methods -----------------------------------------------------------------------------


def test_ief_is_the_natural_gradient_for_scalar_least_squares() -> None:
    batch = CASES["least_squares"].make()
    lin, expected = evalkit.linearize(*batch), dense.dense(*batch)
    update = evalkit.update("ief", lin, damping=1e-12)
    torch.testing.assert_close(update, dense.ngd(expected, 0.0), rtol=1e-8, atol=1e-9)
    assert evalkit.gamma(lin, update) == pytest.approx(lin.gamma_floor, rel=1e-9)


@pytest.mark.parametrize("damping", [1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("name", ["least_squares", "least_squares_more_samples_than_parameters"])
def test_tikhonov_ief_is_the_damped_natural_gradient_for_scalar_least_squares(
    name: str, damping: float
) -> None:
    lin = linearized(name)
    update = evalkit.update("ief-tikhonov", lin, damping=damping)
    found = evalkit.natural_gradient(lin, damping=damping, max_iterations=500, tolerance=1e-13)
    torch.testing.assert_close(update, found.solution, rtol=1e-8, atol=1e-9)


@some_cases
def test_large_damping_turns_ef_into_sgd(name: str) -> None:
    lin = linearized(name)
    cosines = [
        cosine(evalkit.update("ef", lin, damping=damping), lin.gradient)
        for damping in (1e-3, 1e2, 1e5, 1e8)
    ]
    assert 1 - cosines[-1] < 1e-10
    assert cosines[0] < cosines[1] < cosines[2]


@some_cases
def test_large_damping_turns_sf_and_ngd_into_sgd(name: str) -> None:
    lin = linearized(name)
    for method in ("sf", "ngd", "ief-tikhonov"):
        assert 1 - cosine(evalkit.update(method, lin, damping=1e8), lin.gradient) < 1e-9


@pytest.mark.parametrize("name", OVERPARAMETERISED)
def test_undamped_ef_lowers_every_loss_equally_and_ief_by_its_logit_gradient(name: str) -> None:
    """G d_EF = 1 and G d_iEF = s; the projection of EF on a sample's gradient is 1 / |G_n|."""
    lin, expected = linearized(name), reference(name)
    gradients = expected.sample_gradients
    ef, ief = (evalkit.update(method, lin, damping=1e-12) for method in ("ef", "ief"))
    torch.testing.assert_close(
        gradients @ ef, torch.ones(len(gradients)).double(), rtol=1e-7, atol=0
    )
    projections = gradients @ ef / gradients.norm(dim=1)
    torch.testing.assert_close(projections, 1 / expected.gradient_norms, rtol=1e-7, atol=0)
    s = expected.residual.square().sum(1)
    torch.testing.assert_close(gradients @ ief, s, rtol=1e-7, atol=1e-9)


def test_a_small_ef_step_lowers_every_loss_by_the_step() -> None:
    batch = CASES["mlp_categorical"].make()
    lin = evalkit.linearize(*batch)
    drops = (lin.losses - losses_after(batch, evalkit.update("ef", lin), 1e-6)) / 1e-6
    torch.testing.assert_close(drops, torch.ones_like(drops), rtol=1e-3, atol=0)


def losses_after(batch: Batch, direction: Tensor, step: float) -> Tensor:
    """Losses at theta - step * direction; the model of ``batch`` moves there."""
    parameters = [p for p in batch.model.parameters() if p.requires_grad]
    start = nn.utils.parameters_to_vector(parameters).detach()
    nn.utils.vector_to_parameters(start - step * direction, parameters)
    return evalkit.linearize(*batch).losses


def test_ief_flow_decays_scalar_least_squares_exponentially() -> None:
    """d l_n / dt = -|r_n|^2 = -2 l_n along the undamped iEF flow: l_n(t) = exp(-2 t) l_n(0)."""
    batch = CASES["least_squares"].make()
    start = evalkit.linearize(*batch).losses
    losses = flow(batch, steps=20, step=0.05)
    torch.testing.assert_close(losses, math.exp(-2.0) * start, rtol=1e-6, atol=0)


def test_ief_flow_raises_every_target_probability_as_the_paper_says() -> None:
    """p_n(t) > 1 - 2 / (t + C0 + 1) with C0 = 1/(1-p_n(0)) + log(p_n(0)/(1-p_n(0)))."""
    batch = CASES["mlp_categorical"].make()
    p = evalkit.linearize(*batch).losses.neg().exp()
    start = 1 / (1 - p) + torch.log(p / (1 - p))
    for time in (1.0, 2.0, 3.0, 4.0):
        after = flow(batch, steps=10, step=0.1).neg().exp()
        says_something = time + start + 1 > 0
        bound = 1 - 2 / (time + start + 1)
        assert bool((after[says_something] > bound[says_something]).all())
        assert bool((after > p).all())
    assert bool(says_something.all())


def flow(batch: Batch, steps: int, step: float) -> Tensor:
    """Follow d theta / dt = -iEF by the classical Runge-Kutta rule; the losses where it ends."""
    parameters = [p for p in batch.model.parameters() if p.requires_grad]
    for _ in range(steps):
        start = nn.utils.parameters_to_vector(parameters).detach()
        slopes: list[Tensor] = []
        for fraction in (0.0, 0.5, 0.5, 1.0):
            moved = start - fraction * step * slopes[-1] if slopes else start
            nn.utils.vector_to_parameters(moved, parameters)
            slopes.append(evalkit.update("ief", evalkit.linearize(*batch), damping=1e-12))
        mean = (slopes[0] + 2 * slopes[1] + 2 * slopes[2] + slopes[3]) / 6
        nn.utils.vector_to_parameters(start - step * mean, parameters)
    return evalkit.linearize(*batch).losses


# --- sampled labels --------------------------------------------------------------------------


def test_sampled_logit_gradients_are_those_of_labels() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    one_hot = torch.softmax(lin.logits, -1) - lin.sampled_logit_gradients(0, 50)
    hits = one_hot.round()
    torch.testing.assert_close(one_hot, hits, rtol=0, atol=1e-12)
    assert bool((hits.sum(-1) == 1).all())
    lin = evalkit.linearize(*CASES["mlp_bernoulli"].make())
    labels = torch.sigmoid(lin.logits) - lin.sampled_logit_gradients(0, 50)
    torch.testing.assert_close(labels.abs(), labels.abs().round().clamp(0, 1), rtol=0, atol=1e-12)
    assert set(labels.round().flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", ["token_labels", "token_labels_bernoulli"])
def test_positions_without_a_label_are_not_sampled(name: str) -> None:
    batch = CASES[name].make()
    sampled = evalkit.linearize(*batch).sampled_logit_gradients(0, 3)
    ignored = batch.targets == -100
    assert bool((sampled[:, ignored] == 0).all())
    assert bool((sampled[:, ~ignored] != 0).any(-1).all())


@pytest.mark.parametrize(
    "name", ["mlp_categorical", "mlp_bernoulli", "mlp_gaussian", "token_labels"]
)
def test_sampled_fisher_tends_to_the_fisher(name: str) -> None:
    """The error falls like 1 / sqrt(K): 16 times as many labels, a quarter of the error."""
    lin, expected = linearized(name), reference(name)

    def error(labels_per_sample: int) -> float:
        """Root mean square over seeds of the relative Frobenius error."""
        squares = []
        for seed in range(8):
            sampled = lin.sampled_logit_gradients(seed, labels_per_sample)
            difference = dense.sampled_fisher(expected, sampled) - expected.fisher
            squares.append(float((difference.norm() / expected.fisher.norm()) ** 2))
        return math.sqrt(sum(squares) / len(squares))

    few, many = error(40), error(640)
    assert many < 0.12
    assert 2.5 < few / many < 6.5


def test_sampled_fisher_update_tends_to_the_damped_natural_gradient() -> None:
    batch = CASES["mlp_categorical"].make()
    lin, expected = evalkit.linearize(*batch), dense.dense(*batch)
    wanted = 5.0 * dense.ngd(expected, 5.0)

    def error(labels_per_sample: int) -> float:
        settings = {"seed": 2, "labels_per_sample": labels_per_sample}
        update = evalkit.update("sf", lin, damping=5.0, **settings)
        return float((update - wanted).norm() / wanted.norm())

    assert error(400) < 0.3 * error(1)


def test_labels_of_different_samples_are_independent() -> None:
    """Two identical samples draw their own labels."""
    lin = evalkit.linearize(*CASES["duplicate_samples"].make())
    sampled = lin.sampled_logit_gradients(0, 40)
    assert not torch.equal(sampled[:, 0], sampled[:, 3])
