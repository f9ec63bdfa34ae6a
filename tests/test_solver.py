"""The natural gradient by conjugate gradients: monotone, optimal in its Krylov space, honest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.solvers.cg import conjugate_gradients
from evalkit.solvers.direct import solve_directly
from evalkit.solvers.logit_space import LogitSpace
from evalkit.solvers.spaces import cotangents
from evalkit.solvers.stopping import Stopping
from evalkit.solvers.system import System
from evalkit.updates import compute
from tests.support.cases import CASES
from tests.support.chosen_cases import IN_TURNS, SOME, linearized, reference, some_cases
from tests.support.kernels import tangent_kernel
from tests.support.table import Batch


@some_cases
def test_each_gamma_is_the_smallest_in_its_krylov_space(name: str) -> None:
    """After m iterations: min of gamma over span{g, F g, ..., F^(m-1) g}, so SGD's after one."""
    lin, expected = linearized(name), reference(name)
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
    lin = linearized(name)
    for iterations in (1, 5, 40):
        found = evalkit.natural_gradient(
            lin, damping=damping, max_iterations=iterations, tolerance=1e-6
        )
        residual = lin.gradient - lin.fvp(found.solution) - damping * found.solution
        true = float(residual.norm() / lin.gradient.norm())
        assert found.relative_residual == pytest.approx(true, rel=1e-6, abs=1e-12)
        assert found.iterations <= iterations
        assert not found.converged or found.relative_residual <= 1e-6 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("name", "damping"),
    [(name, damping) for name, damping in IN_TURNS if name in SOME or damping < 1e-2],
)
def test_direct_solve_and_cg_agree_and_gammas_fall_to_theirs(name: str, damping: float) -> None:
    """With a larger damping both are held to the dense solution by ``test_contract``."""
    lin, expected = linearized(name), reference(name)
    direct = solve_directly(lin, damping, tolerance=1e-9)
    cg = evalkit.natural_gradient(lin, damping, max_iterations=400, tolerance=1e-12)
    assert direct.converged == (direct.relative_residual <= 1e-9)
    assert direct.cotangents is not None
    x = lin.vjp(direct.cotangents)
    torch.testing.assert_close(x, cg.solution, rtol=1e-6, atol=1e-6 * float(x.abs().max()))
    assert evalkit.gamma(lin, x) == pytest.approx(evalkit.gamma(lin, cg.solution), rel=1e-6)
    residual = expected.gradient - expected.fisher @ x - damping * x
    true = float(residual.norm() / expected.gradient.norm())
    assert direct.relative_residual == pytest.approx(true, rel=1e-3, abs=1e-10)
    gammas = torch.tensor(cg.gammas, dtype=torch.float64)
    assert len(gammas) == cg.iterations
    assert bool((gammas >= lin.gamma_floor * (1 - 1e-9)).all())
    assert gammas[-1] == pytest.approx(evalkit.gamma(lin, cg.solution), rel=1e-6)
    if damping == 0:
        assert bool((gammas[1:] <= gammas[:-1] * (1 + 1e-9)).all())


@some_cases
def test_tangent_kernel_changes_no_result(name: str) -> None:
    batch = CASES[name].make()
    lin, other = evalkit.linearize(*batch), evalkit.linearize(*batch)
    jacobian = reference(name).jacobian
    matrix = jacobian.flatten(0, -2) @ jacobian.flatten(0, -2).T
    torch.testing.assert_close(tangent_kernel(other), matrix)
    c = torch.stack([lin.logit_gradients, lin.logit_gradients.flip(0)])
    torch.testing.assert_close(other.kernel_product(c[1]), lin.kernel_product(c[1]))
    torch.testing.assert_close(other.gram_of(c), lin.gram_of(c))


@some_cases
def test_the_matrix_of_logit_space_is_that_of_the_tangent_kernel(name: str) -> None:
    """B^T (J J^T) B, without the equations that say nothing."""
    lin = linearized(name)
    exact, whole = LogitSpace.exact(lin), LogitSpace.of_kernel(lin, tangent_kernel(lin))
    order = exact.places.argsort()
    assert torch.equal(exact.places[order], whole.places)
    torch.testing.assert_close(exact.matrix[order][:, order], whole.matrix)
    y = lin.logit_gradients.flip(0)
    product = lin.logit_gradients.flatten() @ tangent_kernel(lin)
    seen = exact.by_eigenvalues(1e-3)(y)  # in the range of B
    assert exact.depth(seen) == pytest.approx(float(product @ seen.flatten()), rel=1e-9, abs=1e-12)


@some_cases
@pytest.mark.parametrize("damping", [0.0, 1e-2])
def test_a_preconditioner_changes_the_way_but_not_the_end(name: str, damping: float) -> None:
    lin, expected = linearized(name), reference(name)
    weights = 1 / (expected.fisher.diagonal() + 0.1 * expected.fisher.diagonal().mean())
    plain = evalkit.natural_gradient(lin, damping, max_iterations=4000, tolerance=1e-11)
    found = evalkit.natural_gradient(
        lin, damping, max_iterations=4000, tolerance=1e-11, preconditioner=lambda v: weights * v
    )
    assert found.status == "residual"
    gammas = [evalkit.gamma(lin, one.solution) for one in (plain, found)]
    assert gammas[1] == pytest.approx(gammas[0], rel=1e-6)
    if damping:  # without, solutions differ by what F maps to zero
        torch.testing.assert_close(found.solution, plain.solution, rtol=1e-5, atol=1e-8)


def test_an_exact_preconditioner_needs_one_iteration() -> None:
    name = "least_squares_more_samples_than_parameters"
    lin, expected = linearized(name), reference(name)
    inverse = torch.linalg.inv(expected.fisher)
    found = evalkit.natural_gradient(lin, tolerance=1e-8, preconditioner=lambda v: inverse @ v)
    assert found.iterations == 1
    assert found.converged


@pytest.mark.parametrize("wrong", [lambda v: -v, lambda v: v[:1], lambda v: None])
def test_a_wrong_preconditioner_is_refused(wrong: Callable[[Tensor], Tensor]) -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    with pytest.raises(evalkit.EvalkitError, match="preconditioner"):
        evalkit.natural_gradient(lin, preconditioner=wrong)


def test_residuals_are_replaced_and_gammas_still_fall() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    stopping = Stopping(max_iterations=30, tolerance=0.0)
    plain = System(lin, cotangents(lin), 0.0, stopping, on_iteration=None)
    seldom, often = (
        conjugate_gradients(system)[0].gammas for system in (plain, replace(plain, period=3))
    )
    count = min(len(seldom), len(often), 12)
    assert often != seldom
    assert often[:count] == pytest.approx(seldom[:count], rel=1e-8)


def test_the_ngd_method_takes_the_solver_it_is_told() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    cg, direct, auto = (
        compute(f"ngd:tolerance=1e-9:solver={solver}", lin, 1e-3)
        for solver in ("cg", "direct", "auto")
    )
    assert tuple(one.report.solver for one in (cg, direct, auto)) == ("cg", "direct", "direct")
    torch.testing.assert_close(cg.direction(lin), direct.direction(lin), rtol=1e-6, atol=1e-9)
    with pytest.raises(evalkit.EvalkitError, match="solver"):
        compute("ngd:solver=best", lin, 1e-3)


def scalar_least_squares(spread: Tensor, asked: Tensor, dtype: torch.dtype) -> Batch:
    """One output z = x^T w, J = diag(spread) and residuals asked: F and g are diagonal."""
    model = nn.Linear(len(spread), 1, bias=False).to(dtype)
    nn.init.zeros_(model.weight)
    return Batch(model, torch.diag(spread).to(dtype), -asked[:, None].to(dtype), "gaussian")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("damping", [0.0, 1e-12, 1e-6])
@pytest.mark.parametrize("small", [1e-3, 1e-7, 1e-9])
def test_cg_states_what_eigenvalues_may_hold_that_g_hardly_has(
    small: float, damping: float, dtype: torch.dtype
) -> None:
    """Nine steps meet the tolerance; the tenth eigenvalue, 0.3^2 / 9 of D, they have not seen."""
    s = torch.cat([torch.linspace(1.0, 3.0, 9), torch.tensor([small])]).double()
    asked = torch.cat([torch.ones(9), torch.tensor([0.9])]).double()
    lin = evalkit.linearize(*scalar_least_squares(s, asked, dtype))
    found = evalkit.natural_gradient(lin, damping=damping)
    d = s * asked / (s.square() + damping)
    wanted = float((s * d).norm() / (asked * s * d).sum())
    allowed = found.error + 64 * torch.finfo(dtype).eps
    assert abs(evalkit.gamma(lin, found.solution) / wanted - 1) <= allowed


def test_the_error_of_cg_holds_for_random_spectra() -> None:
    """Eigenvalues over sixteen decades, and residuals that have more or less of each."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        size = int(torch.randint(2, 20, (1,), generator=generator))
        numbers = torch.randn(3, size, generator=generator).double()
        s, asked = 10 ** (-2 * numbers[0].abs().clamp_max(4.0)), numbers[1] * 10 ** numbers[2]
        lin = evalkit.linearize(*scalar_least_squares(s, asked, torch.float64))
        for damping in (0.0, 1e-9, 1e-3):
            for tolerance in (1e-3, 1e-6, 1e-9):
                found = evalkit.natural_gradient(lin, damping=damping, tolerance=tolerance)
                d = s * asked / (s.square() + damping)
                wanted = float((s * d).norm() / (asked * s * d).sum())
                off = abs(evalkit.gamma(lin, found.solution) / wanted - 1)
                assert off <= found.error + 1e-9, (size, damping, tolerance, found.status)
