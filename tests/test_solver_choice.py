"""Which solver of the natural gradient is taken, and that all of them agree."""

from __future__ import annotations

import functools
import itertools
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import evalkit
from evalkit.cli import main
from evalkit.solvers.choice import ITERATION_CALLS, Choice, cheapest, expected_iterations
from evalkit.solvers.direct import solve_directly
from evalkit.solvers.stopping import Stopping
from evalkit.updates import compute
from evalkit.work import (
    TYPICAL,
    Rates,
    Work,
    agreed_rates,
    factor_work,
    kernel_work,
    machine_rates,
    product_work,
)
from tests.benchmarks.problems import PROBLEMS
from tests.support.cases import CASES
from tests.support.table import Draw

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(400, 64), nn.Tanh(), nn.Linear(64, 8)).double()


def test_the_fastest_solver() -> None:
    """Rows of an MLP are cheap to multiply in full, those of a convolution are not."""
    x, y = Draw(0).normal(20, 400), torch.arange(20) % 8
    lin = evalkit.linearize(wide(), x, y)
    assert cheapest(lin, Stopping(tolerance=1e-9), TYPICAL) == "direct"
    assert cheapest(lin, Stopping(max_iterations=1, tolerance=1e-9), TYPICAL) == "cg"
    assert compute("ngd:solver=auto", lin, 1e-12).report.solver == cheapest(lin, Stopping())
    problem = next(problem for problem in PROBLEMS if "CNN" in problem.name)
    lin = evalkit.linearize(*problem.make())
    for stopping in (Stopping(), Stopping(floor_tolerance=0.01)):
        assert cheapest(lin, stopping, TYPICAL) == "sketch"
    assert cheapest(lin, Stopping(max_iterations=3), TYPICAL) == "cg"
    found = evalkit.natural_gradient(lin, floor_tolerance=0.01, solver="sketch")
    assert (found.solver, found.status) == ("sketch", "floor")
    assert found.iterations < 0.5 * expected_iterations(lin, 0.02)


def digits_like() -> evalkit.Linearization:
    """A batch as those of the bundled runs: 160 samples, 10 classes, three small layers."""
    torch.manual_seed(0)
    sizes = (64, 32, 32, 10)
    layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in itertools.pairwise(sizes)]
    return evalkit.linearize(nn.Sequential(*layers), torch.randn(160, 64), torch.arange(160) % 10)


def test_time_decides_and_not_multiplications_alone() -> None:
    """An operation takes as long as a hundred thousand multiplications on one machine."""
    lin = digits_like()
    assert cheapest(lin, Stopping(), TYPICAL) == "direct"
    quick_calls = replace(TYPICAL, calls=1e12, double=TYPICAL.single / 64)
    assert cheapest(lin, Stopping(), quick_calls) == "cg"


def test_an_exact_solution_is_worth_nothing_more_where_few_digits_are_asked_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 4))
    lin = evalkit.linearize(model, Draw(0).normal(150, 784).float(), torch.arange(150) % 4)
    assert cheapest(lin, Stopping(floor_tolerance=1e-9), TYPICAL) == "direct"
    assert cheapest(lin, Stopping(floor_tolerance=0.01), TYPICAL) == "cg"


def test_where_times_are_near_the_exact_solver_wins() -> None:
    """Iterations are allowed until CG would take as long, and then up to twice as long."""
    lin = digits_like()
    exact = next(n for n in range(1, 999) if cheapest(lin, Stopping(n), TYPICAL) == "direct")
    iteration = TYPICAL.seconds(product_work(lin) + Work(calls=ITERATION_CALLS))
    direct = TYPICAL.seconds(kernel_work(lin) + factor_work(lin))
    assert exact * iteration < direct


def test_rates_are_measured_once_and_coarse() -> None:
    rates = machine_rates(torch.device("cpu"))
    assert machine_rates(torch.device("cpu")) is rates
    for rate in (rates.single, rates.double, rates.calls):
        assert math.log2(rate) == round(math.log2(rate))
    work = Work(single=rates.single, double=2 * rates.double, calls=3 * rates.calls)
    assert rates.seconds(2 * work + work) == 18.0


@pytest.mark.parametrize("name", ["mlp_categorical", "convolution_group_norm"])
@pytest.mark.parametrize("error", [1e-2, 1e-6])
def test_iterations_are_foreseen_from_the_first(name: str, error: float) -> None:
    """The condition number is estimated from below, so rarely too many are expected."""
    lin = evalkit.linearize(*CASES[name].make())
    found = evalkit.natural_gradient(
        lin, max_iterations=1000, tolerance=0.0, floor_tolerance=(1 - error) ** -0.5 - 1
    )
    assert found.status == "floor"
    assert 0.1 * found.iterations <= expected_iterations(lin, error) <= 2 * found.iterations
    assert expected_iterations(lin, error**2) > expected_iterations(lin, error)


def test_wrong_choices_are_refused() -> None:
    lin = evalkit.linearize(wide(), Draw(0).normal(20, 400), torch.arange(20) % 8)
    with pytest.raises(evalkit.EvalkitError, match="auto, cg, sketch, direct"):
        evalkit.natural_gradient(lin, solver="best")  # type: ignore[arg-type]
    with pytest.raises(evalkit.EvalkitError, match="preconditioner"):
        evalkit.natural_gradient(lin, solver="sketch", preconditioner=lambda v: v)


def dependent(dtype: str) -> evalkit.Linearization:
    """More outputs than parameters, and labels that no direction can fit: J J^T is singular."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(13, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    inputs, targets = torch.randn(160, 13), torch.randint(3, (160,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evalkit.linearize(model, inputs, targets, dtype=dtype)


@functools.cache
def exact_gamma(damping: float) -> float:
    """Gamma of the solution in float64."""
    exact = dependent("float64")
    return evalkit.gamma(exact, solve_directly(exact, damping, 1e-9).vector)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("damping", [0.0, 1e-12, 1e-6, 1e-2])
@pytest.mark.parametrize("solver", ["cg", "sketch", "direct", "auto"])
def test_solvers_agree_where_outputs_depend_on_each_other(
    solver: Choice, damping: float, dtype: str
) -> None:
    lin, best = dependent(dtype), exact_gamma(damping)
    found = evalkit.natural_gradient(lin, damping, solver=solver)
    assert float(found.solution @ lin.gradient) > 0
    near = 1e-4 if solver == "direct" else 0.03  # CG ends at its limit
    assert evalkit.gamma(lin, found.solution) == pytest.approx(best, rel=near)
    if damping == 0:
        rises = [b / a - 1 for a, b in itertools.pairwise(found.gammas)]
        assert max(rises, default=0.0) <= 1e-3


def test_a_direct_solve_takes_over_where_cg_reaches_its_limit(tmp_path: Path) -> None:
    """On this batch CG is foreseen to end within its limit of 200 iterations, and does not."""
    shutil.copy(CHECKPOINTS / "digits-mlp" / "step-000092.safetensors", tmp_path)
    slow = Rates(single=2.0**35, double=2.0**34, calls=2.0**20)
    command = ["score", str(tmp_path), "--task", "digits-mlp", "--batches", "1", "--methods"]
    scores = {}
    for method in ("ngd", "ngd:solver=cg"):
        out = tmp_path / method.replace(":", "-")
        with agreed_rates(slow):
            assert main([*command, method, "--out", str(out)]) == 0
        scores[method] = pd.read_csv(out / "scores.csv").iloc[0]
    assert (scores["ngd:solver=cg"].iterations, scores["ngd"].solver) == (200, "direct")
    assert scores["ngd"].gamma < 0.98 * scores["ngd:solver=cg"].gamma
