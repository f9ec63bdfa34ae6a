"""Sketches keep inner products on average, and as preconditioners change no result."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.layers import sketches
from evalkit.layers.rows import Formed, GradientRows
from evalkit.layers.sketches import SIZE, SketchSize
from evalkit.linearization.ruled_rows import row_kinds
from evalkit.solvers.cg import solve_by_cg
from evalkit.solvers.direct import solve_directly
from evalkit.solvers.sketch import sketched_kernel
from evalkit.solvers.solved import formed
from evalkit.solvers.stopping import Stopping
from evalkit.work import IMPOSSIBLE, sketch_work
from tests.support.cases import CASES
from tests.support.chosen_cases import (
    IN_TURNS,
    SECOND_ROUTE_NEEDED,
    SOME,
    linearized,
    some_cases,
)
from tests.support.drawn_rows import (
    Sizes,
    explicit_lookups,
    explicit_outer,
    lookups,
    outer_products,
)
from tests.support.kernels import tangent_kernel
from tests.support.table import Draw

OUTER = Sizes(2, 1, 3, 4, 1, 1, 1, 6, 5)

EVERY_OTHER = [one for place, one in enumerate(IN_TURNS) if one[0] in SOME or place % 2]
"""That sketches are right is held on every case: here they only precondition."""

POOR = SketchSize(inputs=2, columns=2)


def rows_of(kind: str) -> tuple[GradientRows, Tensor]:
    """Rows of one cotangent for each of a few samples, and the same formed."""
    draw = Draw(0)
    if kind == "formed":
        formed = Formed(draw.normal(1, 3, 40))
        return formed, formed.values[0]
    if kind == "lookups":
        table = lookups(draw, 12, (1, 3, 5, 7))
        return table, explicit_lookups(table, 12)
    sizes = OUTER if kind != "one position" else OUTER._replace(positions=1)
    outer, _ = outer_products(draw, sizes, bias=kind == "with bias")
    return outer, explicit_outer(outer)


def sketched(rows: GradientRows, width: int | None, seed: int, size: SketchSize = SIZE) -> Tensor:
    """Return sketched rows, at full size for no width."""
    sketch = sketches.SKETCHES[type(rows)](rows, torch.Generator().manual_seed(seed), size.inputs)
    out = torch.empty(3, min(sketch.size, width or sketch.size), dtype=torch.float64)
    sketch.write(rows, out)
    return out


KINDS = ["formed", "lookups", "outer products", "with bias", "one position"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sketch_with_room_for_all_columns_is_exact(kind: str) -> None:
    rows, formed = rows_of(kind)
    found = sketched(rows, None, 0)
    torch.testing.assert_close(found @ found.T, formed @ formed.T)


def assert_right_on_average(inner: Tensor, expected: Tensor) -> None:
    """Over the draws of the signs along axis 0."""
    assert not torch.allclose(inner[0], inner[1])
    error = inner.std(0) / math.sqrt(len(inner))
    assert bool(((inner.mean(0) - expected).abs() < 4.5 * error + 1e-9).all())


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_of_sketches_are_right_on_average(kind: str) -> None:
    """With entries of tables mapped to two and columns folded to nine."""
    rows, formed = rows_of(kind)
    inner = torch.stack([(r := sketched(rows, 9, seed, POOR)) @ r.T for seed in range(2000)])
    assert_right_on_average(inner, formed @ formed.T)


@pytest.mark.parametrize(
    "name",
    [
        "convolution_used_twice",
        "embedding_used_twice",
        "two_axes_of_positions",
        "conv2d_all_at_once",
    ],
)
def test_sketched_kernels_are_right_on_average(name: str) -> None:
    """With inputs mapped to two, and weights that several calls share."""
    lin = evalkit.linearize(*CASES[name].make())
    assert covered(lin)
    drawn = [sketched_kernel(lin, POOR, seed) for seed in range(400, 600)]
    assert_right_on_average(torch.stack(drawn), tangent_kernel(lin))


@pytest.mark.parametrize(
    ("sizes", "total", "width"),
    [([5, 7], 100, 7), ([5, 50, 50], 25, 10), ([50, 5, 50], 65, 30), ([9, 9], 4, 2), ([], 7, 1)],
)
def test_a_fair_width_shares_the_room(sizes: list[int], total: int, width: int) -> None:
    found = sketches.fair_width(sizes, total)
    assert sum(min(size, found) for size in sizes) <= total
    assert found == width


def covered(lin: evalkit.Linearization) -> bool:
    recording = lin._batches[0].recording
    return set(row_kinds(recording)) == set(recording.parameters)


def can_be_sketched(lin: evalkit.Linearization) -> bool:
    """Whether some parameter has per-sample gradients from one backward; if not, it is said."""
    if row_kinds(lin._batches[0].recording):
        return True
    with pytest.raises(evalkit.EvalkitError, match="solver 'cg'"):
        evalkit.natural_gradient(lin, solver="sketch")
    return False


@pytest.mark.parametrize("name", [name for name in CASES if name not in SECOND_ROUTE_NEEDED])
def test_a_kernel_sketched_with_all_columns_is_the_kernel(name: str) -> None:
    """Parameters without gradients from one backward are missing: the kernel is larger then."""
    lin, all_columns = linearized(name), SketchSize(10**6, 10**6)
    if covered(lin):
        torch.testing.assert_close(sketched_kernel(lin, all_columns), tangent_kernel(lin))
    elif can_be_sketched(lin):
        missing = torch.linalg.eigvalsh(tangent_kernel(lin) - sketched_kernel(lin, all_columns))
        assert missing[0] >= -1e-9 * float(tangent_kernel(lin).diagonal().max())


@pytest.mark.parametrize(
    "name", ["mlp_categorical", "convolution_group_norm", "embedding_tied_by_function"]
)
def test_micro_batches_are_sketched_with_the_same_signs(name: str) -> None:
    model, inputs, targets, likelihood = CASES[name].make()
    whole, parts = (
        evalkit.linearize(model, inputs, targets, likelihood, micro_batch_size=size)
        for size in (None, 2)
    )
    torch.testing.assert_close(sketched_kernel(parts, POOR), sketched_kernel(whole, POOR))


@pytest.mark.parametrize(("name", "damping"), EVERY_OTHER)
def test_the_sketch_changes_no_result(name: str, damping: float) -> None:
    """Even a poor one: two columns per output."""
    lin = linearized(name)
    if not can_be_sketched(lin):
        return
    few = SketchSize(columns=2)
    stopping = Stopping(max_iterations=400, tolerance=1e-11)
    found = formed(lin, solve_by_cg(lin, damping, stopping, preconditioner=few, form=True))
    direct = solve_directly(lin, damping, tolerance=1e-9)
    assert direct.cotangents is not None
    x = lin.vjp(direct.cotangents)
    torch.testing.assert_close(found.solution, x, rtol=1e-6, atol=1e-6 * float(x.abs().max()))
    assert evalkit.gamma(lin, found.solution) == pytest.approx(evalkit.gamma(lin, x), rel=1e-6)
    residual = lin.gradient - lin.fvp(found.solution) - damping * found.solution
    true = float(residual.norm() / lin.gradient.norm())
    assert found.relative_residual == pytest.approx(true, rel=1e-3, abs=1e-10)
    gammas = torch.tensor(found.gammas, dtype=torch.float64)
    assert len(gammas) == found.iterations
    assert bool((gammas >= lin.gamma_floor * (1 - 1e-9)).all())
    if damping == 0:
        assert bool((gammas[1:] <= gammas[:-1] * (1 + 1e-9)).all())


@some_cases
def test_the_sketch_needs_few_iterations(name: str) -> None:
    batch = CASES[name].make()
    if not can_be_sketched(evalkit.linearize(*batch)):
        return
    plain, found = (
        evalkit.natural_gradient(
            evalkit.linearize(*batch), damping=1e-3, tolerance=1e-9, solver=solver
        )
        for solver in ("cg", "sketch")
    )
    assert found.solver == "sketch"
    assert found.status == "residual"
    assert found.iterations <= max(5, plain.iterations)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(24 * 64, 8)).double()


def test_the_sketch_converges_fast_in_float32_with_duplicates_that_disagree() -> None:
    """J J^T is singular then, and the residual has a part that nothing can remove."""
    model = convolutional().float()
    x = Draw(1).normal(24, 3, 12, 12).float()
    x[12:] = x[:12]
    y = torch.arange(24) % 8
    lin = evalkit.linearize(model, x, y)
    plain, found = (
        evalkit.natural_gradient(lin, tolerance=1e-4, solver=solver) for solver in ("cg", "sketch")
    )
    assert found.converged
    assert found.iterations < 0.5 * plain.iterations
    exact = evalkit.natural_gradient(
        evalkit.linearize(model.double(), x.double(), y), tolerance=1e-9, max_iterations=2000
    )
    assert found.gammas[-1] == pytest.approx(exact.gammas[-1], rel=1e-5)
    assert found.gammas[-1] > 1.01 * lin.gamma_floor


@pytest.mark.parametrize("steps", [0, 60])
def test_a_tolerance_beyond_float32_ends_the_search(steps: int) -> None:
    """Steps along rounding would lead away from the solution for as long as they were allowed."""
    model = convolutional().float()
    x, y = Draw(1).normal(24, 3, 12, 12).float(), torch.arange(24) % 8
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    lin = evalkit.linearize(model, x, y)
    found = evalkit.natural_gradient(lin, tolerance=1e-9, solver="sketch")
    assert (found.status, found.converged) == ("breakdown", False)
    assert found.iterations < 60
    assert found.relative_residual < 1e-4
    residual = lin.gradient - lin.fvp(found.solution)
    assert float(residual.norm() / lin.gradient.norm()) == pytest.approx(
        found.relative_residual, rel=0.2
    )
    assert evalkit.gamma(lin, found.solution) == pytest.approx(lin.gamma_floor, rel=1e-6)


def test_a_model_without_rules_cannot_be_sketched() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight).sin() * self.weight.sum()

    lin = evalkit.linearize(Bare(), torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    assert sketch_work(lin) == IMPOSSIBLE
    with pytest.raises(evalkit.EvalkitError, match="solver 'cg'"):
        evalkit.natural_gradient(lin, solver="sketch")
    assert evalkit.natural_gradient(lin, solver="auto").solver in ("cg", "direct")


def test_a_last_micro_batch_of_one_sample() -> None:
    """Positions looked up once are shared by several samples, and of the only one alone."""
    torch.manual_seed(0)

    class Bert(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = torch.nn.Embedding(50, 8), torch.nn.Embedding(6, 8)
            self.out = torch.nn.Linear(8, 3)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            h = self.words(tokens) + self.places(torch.arange(6)[None])
            return self.out(torch.tanh(h).mean(1))

    batch = Bert().double(), torch.randint(50, (9, 6)), torch.randint(3, (9,))
    whole, split = (evalkit.linearize(*batch, micro_batch_size=size) for size in (None, 4))
    found = evalkit.natural_gradient(split, 1e-3, solver="sketch", tolerance=1e-9)
    exact = evalkit.natural_gradient(whole, 1e-3, solver="direct", tolerance=1e-9)
    torch.testing.assert_close(found.solution, exact.solution, rtol=1e-6, atol=1e-9)
