"""Every quantity of the interface against the dense reference, over the table of cases."""

from __future__ import annotations

import pytest
import torch

import evalkit
from tests.support import dense
from tests.support.agreement import TIGHT, assert_near_in_norm, well_conditioned
from tests.support.cases import CASES
from tests.support.chosen_cases import SOME, every_case, linearized, reference
from tests.support.expected_scores import NGD
from tests.support.vectors import cosine, random_vector

# --- the linearization -----------------------------------------------------------------------


@every_case
def test_sizes(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    assert lin.num_samples == expected.num_samples
    assert lin.num_params == expected.num_params


@every_case
def test_logits_losses_and_gradient(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    assert_near_in_norm(lin.logits, expected.logits)
    assert_near_in_norm(lin.losses, expected.losses)
    assert_near_in_norm(lin.gradient, expected.gradient)


@every_case
def test_jvp(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    for seed in range(2):
        v = random_vector(expected.num_params, seed)
        assert_near_in_norm(lin.jvp(v), expected.jvp(v))


@every_case
def test_vjp(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    for seed in range(2):
        c = random_vector(expected.logits.numel(), seed).reshape(expected.logits.shape)
        assert_near_in_norm(lin.vjp(c), expected.vjp(c))


@every_case
def test_fisher_vector_product(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    for seed in range(2):
        v = random_vector(expected.num_params, seed)
        assert_near_in_norm(lin.fvp(v), expected.fisher @ v)


@every_case
def test_gram_matrix(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    assert lin.gram.dtype == torch.float64
    scale = torch.outer(expected.gradient_norms, expected.gradient_norms)
    assert lin.gram.shape == scale.shape
    assert float(((lin.gram - expected.gram).abs() / scale).max()) <= TIGHT


@every_case
def test_norms_and_floor(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    assert_near_in_norm(lin.gradient_norms, expected.gradient_norms)
    assert_near_in_norm(lin.logit_gradient_norms, expected.logit_gradient_norms)
    assert isinstance(lin.gamma_floor, float)
    assert lin.gamma_floor == pytest.approx(expected.gamma_floor, rel=1e-8)


@every_case
def test_gamma(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    for seed in range(3):
        v = random_vector(expected.num_params, seed)
        measured = evalkit.gamma(lin, v)
        assert isinstance(measured, float)
        assert measured == pytest.approx(expected.gamma(v), rel=1e-8)


def test_products_do_not_disturb_each_other() -> None:
    """Any order of calls, repeated, gives the same numbers: the kept graph stays usable."""
    lin = evalkit.linearize(*CASES["attention_function_with_token_labels"].make())
    v = random_vector(lin.num_params)
    first = (lin.gram.clone(), lin.jvp(v), lin.vjp(lin.jvp(v)), lin.fvp(v), lin.gradient.clone())
    second = (lin.gram, lin.jvp(v), lin.vjp(lin.jvp(v)), lin.fvp(v), lin.gradient)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_results_hold_no_graph() -> None:
    lin = linearized("mlp_categorical")
    v = random_vector(lin.num_params)
    vectors = (lin.logits, lin.losses, lin.gradient, lin.jvp(v), lin.vjp(lin.logits), lin.fvp(v))
    assert not any(t.requires_grad for t in (*vectors, lin.gram, lin.gradient_norms))


# --- updates ---------------------------------------------------------------------------------


def test_method_names() -> None:
    names = evalkit.methods()
    assert {"sgd", "ef", "ief", "ief-tikhonov", "sf", "ngd"} <= set(names)


@every_case
def test_direct_updates_with_moderate_damping(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    for damping in (1e-3, 0.5):
        assert_near_in_norm(evalkit.update("sgd", lin, damping=damping), dense.sgd(expected))
        assert_near_in_norm(evalkit.update("ef", lin, damping=damping), dense.ef(expected, damping))
        assert_near_in_norm(
            evalkit.update("ief", lin, damping=damping), dense.ief(expected, damping)
        )
        tikhonov = evalkit.update("ief-tikhonov", lin, damping=damping)
        assert_near_in_norm(tikhonov, dense.ief_tikhonov(expected, damping), 1e-8)


@every_case
def test_direct_updates_with_the_default_damping(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    if not well_conditioned(expected):  # asked here: collecting would build every reference
        return
    for method, solve in (("ef", dense.ef), ("ief", dense.ief)):
        actual, wanted = evalkit.update(method, lin), solve(expected, 1e-12)
        assert cosine(actual.double(), wanted) >= 1 - 1e-9
        assert evalkit.gamma(lin, actual) == pytest.approx(expected.gamma(wanted), rel=1e-6)


@every_case
def test_sampled_fisher_update(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    for labels_per_sample, damping in ((1, 1e-2), (4, 0.5)):
        sampled = lin.sampled_logit_gradients(7, labels_per_sample)
        assert sampled.dtype == torch.float64
        assert sampled.shape == (labels_per_sample, *expected.logits.shape)
        settings = {"seed": 7, "labels_per_sample": labels_per_sample}
        actual = evalkit.update("sf", lin, damping=damping, **settings)
        assert_near_in_norm(actual, dense.sf(expected, sampled, damping), 1e-8)
        named = f"sf:labels_per_sample={labels_per_sample}"
        assert torch.equal(evalkit.update(named, lin, damping=damping, seed=7), actual)


@every_case
def test_natural_gradient(name: str) -> None:
    lin, expected = linearized(name), reference(name)
    damping = 1e-2
    wanted = dense.ngd(expected, damping)
    found = evalkit.natural_gradient(lin, damping=damping, max_iterations=2000, tolerance=1e-12)
    assert found.converged
    assert_near_in_norm(found.solution, wanted, 1e-7)
    assert len(found.gammas) == found.iterations
    assert found.gammas[-1] == pytest.approx(expected.gamma(wanted), rel=1e-6)
    assert_near_in_norm(evalkit.update(NGD, lin, damping=damping), wanted, 1e-7)
    if name in SOME:
        keywords = {"max_iterations": 2000, "tolerance": 1e-12}
        assert_near_in_norm(evalkit.update("ngd", lin, damping=damping, **keywords), wanted, 1e-7)


@pytest.mark.parametrize("damping", [1e-12, 1e-8, 1e-2])
def test_updates_with_more_samples_than_parameters(damping: float) -> None:
    """The Gram matrix is singular, the matrices over parameters are not: no digit may be lost."""
    name = "least_squares_more_samples_than_parameters"
    lin, expected = linearized(name), reference(name)
    rows = expected.sample_gradients
    matrix = rows.T @ rows + damping * dense.identity(expected.num_params)
    s = expected.residual.square().sum(1)
    wanted = {
        "ef": torch.linalg.solve(matrix, expected.gradient),
        "ief": torch.linalg.solve(matrix, rows.T @ s),
        "ief-tikhonov": dense.ief_tikhonov(expected, damping),
        "sf": dense.sf(expected, lin.sampled_logit_gradients(0, 1), damping),
    }
    for method, d in wanted.items():
        actual = evalkit.update(method, lin, damping=damping, seed=0)
        assert cosine(actual, d) == pytest.approx(1.0, abs=1e-9), method
        assert evalkit.gamma(lin, actual) == pytest.approx(expected.gamma(d), rel=1e-6), method


@pytest.mark.parametrize("damping", [1e-12, 1e-8, 1e-2])
@pytest.mark.parametrize("name", ["least_squares", "scalar_logit"])
def test_sampled_fisher_update_with_scalar_outputs(name: str, damping: float) -> None:
    """g lies in the span of the sampled gradients: with K sampled residuals e_nk per sample,

    lambda (J^T E J + lambda I)^-1 J^T r = lambda J^T (E J J^T + lambda I)^-1 r with
    E = diag(mean_k e_nk^2), which is solved without cancellation.
    """
    lin, expected = linearized(name), reference(name)
    sampled = lin.sampled_logit_gradients(0, 1)
    mean_square = torch.diag(sampled.square().mean(0).flatten())
    jacobian, r = expected.jacobian[:, 0], expected.residual[:, 0]
    matrix = mean_square @ jacobian @ jacobian.T + damping * dense.identity(len(r))
    wanted = damping * jacobian.T @ torch.linalg.solve(matrix, r)
    actual = evalkit.update("sf", lin, damping=damping, seed=0)
    assert cosine(actual, wanted) == pytest.approx(1.0, abs=1e-9)
    assert evalkit.gamma(lin, actual) == pytest.approx(expected.gamma(wanted), rel=1e-6)


def test_calls_under_no_grad() -> None:
    name = "attention_module"
    expected = reference(name)
    v = random_vector(expected.num_params)
    with torch.no_grad():
        lin = evalkit.linearize(*CASES[name].make())
        assert_near_in_norm(lin.fvp(v), expected.fisher @ v)
        assert_near_in_norm(lin.gram, expected.gram)
        assert_near_in_norm(evalkit.update("ief", lin, damping=1e-2), dense.ief(expected, 1e-2))
