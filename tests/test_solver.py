"""The natural gradient by conjugate gradients: monotone, optimal in its Krylov space, honest."""

from __future__ import annotations

import pytest
import torch

import evalkit
from tests import dense
from tests.cases import CASES
from tests.test_properties import some_cases


@pytest.mark.parametrize("name", CASES)
def test_gammas_never_rise_and_stay_above_the_floor(name: str) -> None:
    batch = CASES[name].make()
    lin = evalkit.linearize(*batch)
    found = evalkit.natural_gradient(lin, max_iterations=60, tolerance=1e-10)
    gammas = torch.tensor(found.gammas, dtype=torch.float64)
    assert len(gammas) == found.iterations
    assert bool((gammas[1:] <= gammas[:-1] * (1 + 1e-9)).all())
    assert bool((gammas >= lin.gamma_floor * (1 - 1e-9)).all())
    assert gammas[-1] == pytest.approx(evalkit.gamma(lin, found.solution), rel=1e-6)


@some_cases
def test_each_gamma_is_the_smallest_in_its_krylov_space(name: str) -> None:
    """After m iterations: min of gamma over span{g, F g, ..., F^(m-1) g}, so SGD's after one."""
    batch = CASES[name].make()
    lin, expected = evalkit.linearize(*batch), dense.dense(*batch)
    found = evalkit.natural_gradient(lin, max_iterations=4, tolerance=1e-13)
    basis = [expected.gradient / expected.gradient.norm()]
    for measured in list(found.gammas)[:4]:
        space = torch.linalg.qr(torch.stack(basis, 1))[0]
        slope, matrix = space.T @ expected.gradient, space.T @ expected.fisher @ space
        best = float(slope @ torch.linalg.solve(matrix, slope)) ** -0.5
        assert measured == pytest.approx(best, rel=1e-6)
        following = expected.fisher @ space[:, -1]
        basis.append(following / following.norm())
    assert found.gammas[0] == pytest.approx(evalkit.gamma(lin, lin.gradient), rel=1e-9)


@some_cases
@pytest.mark.parametrize("damping", [0.0, 1e-3, 1.0])
def test_relative_residual_is_the_true_one(name: str, damping: float) -> None:
    lin = evalkit.linearize(*CASES[name].make())
    for iterations in (1, 5, 40):
        found = evalkit.natural_gradient(
            lin, damping=damping, max_iterations=iterations, tolerance=1e-6
        )
        residual = lin.gradient - lin.fvp(found.solution) - damping * found.solution
        true = float(residual.norm() / lin.gradient.norm())
        assert found.relative_residual == pytest.approx(true, rel=1e-6, abs=1e-12)
        assert found.iterations <= iterations
        assert not found.converged or found.relative_residual <= 1e-6 * (1 + 1e-6)
