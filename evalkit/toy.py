"""Problems of two parameters and two samples, on which every update can be seen as an arrow.

The paper's Figures 1 and 4: the loss landscape, the field of each update, and where following it
leads. All numbers come from :func:`evalkit.linearize` and the registered methods, in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from evalkit import likelihoods
from evalkit.indicator import indicator
from evalkit.linearization import Linearization, linearize
from evalkit.machine import versions
from evalkit.reductions import norm
from evalkit.registry import Registry
from evalkit.scoring.metrics import efficiency
from evalkit.settings import DEFAULT_DAMPING, check_damping
from evalkit.toy_tables import TABLES, Toy
from evalkit.updates import update
from evalkit.version import __version__

METHODS = ("sgd", "ngd", "ief", "ef")
REACHED = 1e-16
"""A trajectory ends where the loss is this small: no direction means anything below."""

Point = tuple[float, float]
"""The parameters (w, b) of z = w x + b."""


@dataclass(frozen=True)
class Problem:
    """Two samples for the model z = w x + b.

    Attributes:
        name: as the command line calls it.
        likelihood: what z means.
        inputs: x of each sample.
        targets: y of each sample.
        center: the center of the square that is drawn.
        width: the width of that square.
        starts: the starts of the trajectories.
    """

    name: str
    likelihood: str
    inputs: tuple[float, float]
    targets: tuple[float, float]
    center: Point
    width: float
    starts: tuple[Point, ...]

    def linearize(self, point: Point) -> Linearization:
        """Return both samples linearised at a point."""
        model = nn.utils.skip_init(nn.Linear, 1, 1, dtype=torch.float64)
        with torch.no_grad():
            model.weight.fill_(point[0])
            model.bias.fill_(point[1])
        return linearize(model, _column(self.inputs), _column(self.targets), self.likelihood)

    def losses(self, points: Tensor) -> Tensor:
        """Return the summed loss at M points at once: (M, 2) -> (M,)."""
        model = nn.utils.skip_init(nn.Linear, 1, 1, dtype=torch.float64)
        parameters = {"weight": points[:, :1, None], "bias": points[:, 1:]}
        inputs, targets = _column(self.inputs), _column(self.targets)
        logits = vmap(lambda values: functional_call(model, values, (inputs,)))(parameters)
        meaning = likelihoods.get(self.likelihood)
        losses = meaning.losses(logits.flatten(0, 1), targets.repeat(len(points), 1))
        return losses.view(len(points), -1).sum(1)

    def contains(self, point: Point) -> bool:
        """Whether a point lies in the square that is drawn."""
        pairs = zip(point, self.center, strict=True)
        return all(abs(value - middle) <= self.width / 2 for value, middle in pairs)


PROBLEMS: Registry[Problem] = Registry("problem")
for _problem in (
    Problem(
        name="least-squares",
        likelihood="gaussian",
        inputs=(0.0, 1.0),
        targets=(0.0, 0.0),
        # Off the minimum, so that no arrow stands where the gradient of a sample is zero: iEF and
        # EF jump there.
        center=(0.25, 0.0),
        width=6.0,
        starts=((-2.5, 2.0), (-0.6, 2.6), (2.6, 0.8), (2.2, -2.6), (-2.0, -1.6)),
    ),
    Problem(
        name="logistic",
        likelihood="bernoulli",
        inputs=(0.0, 2.0),
        targets=(0.0, 1.0),
        center=(1.0, -1.0),
        width=8.0,
        starts=((-2.4, 1.4), (-2.6, -1.4), (-1.2, -4.4), (0.4, 1.0), (3.6, 2.4)),
    ),
):
    PROBLEMS.add(_problem.name, _problem)


@dataclass(frozen=True)
class Tracing:
    """How finely a problem is computed.

    A step of a trajectory goes along -d and is ``step_length`` long, shorter where the local
    quadratic model has its minimum along d before, at (d^T g / d^T F d) |d|.

    Attributes:
        damping: the damping of every method.
        arrows: along each side of the square.
        points: the points of the landscape, along each side.
        steps: the steps of a trajectory, at most; it ends where it leaves the square too.
        step_length: |theta_next - theta|.

    Raises:
        EvalkitError: the damping is not a finite number of at least 0.
    """

    damping: float = DEFAULT_DAMPING
    arrows: int = 16
    points: int = 61
    steps: int = 240
    step_length: float = 0.05

    def __post_init__(self) -> None:
        check_damping(self.damping)


def compute_toy(problem: Problem, tracing: Tracing | None = None) -> Toy:
    """Return landscape, field and trajectories of a problem with their provenance.

    Args:
        problem: one of :data:`PROBLEMS`.
        tracing: how finely; default: as the figures show it.
    """
    tracing = tracing or Tracing()
    tables = {
        "landscape": _landscape(problem, tracing.points),
        "field": _field(problem, tracing),
        "trajectories": itertools.chain.from_iterable(
            _trajectory(problem, tracing, method, start)
            for method, start in itertools.product(METHODS, range(len(problem.starts)))
        ),
    }
    frames = {
        name: pd.DataFrame(rows, columns=[column.name for column in TABLES[name]])
        for name, rows in tables.items()
    }
    facts = asdict(problem)
    provenance = {
        "evalkit": __version__,
        "versions": versions(),
        "problem": facts.pop("name"),
        **facts,
        "methods": METHODS,
        **asdict(tracing),
    }
    return Toy(**frames, provenance=provenance)


def _column(values: tuple[float, float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def _landscape(problem: Problem, points: int) -> Iterator[tuple[float, ...]]:
    weights, biases = (_side(middle, problem.width, points) for middle in problem.center)
    grid = np.array([(weight, bias) for bias, weight in itertools.product(biases, weights)])
    losses = problem.losses(torch.tensor(grid)).tolist()
    return ((*point, loss) for point, loss in zip(grid.tolist(), losses, strict=True))


def _field(problem: Problem, tracing: Tracing) -> Iterator[tuple[str | float, ...]]:
    # Arrows stand at the centers of equal squares, clear of the edges.
    inside = problem.width * (1 - 1 / tracing.arrows)
    sides = [_side(middle, inside, tracing.arrows) for middle in problem.center]
    linearized = [
        (weight, bias, problem.linearize((weight, bias)))
        for weight, bias in itertools.product(*sides)
    ]
    for method in METHODS:
        for weight, bias, lin in linearized:
            d = update(method, lin, tracing.damping)
            found = efficiency(indicator(lin, lin.jvp(d)).gamma, lin.gamma_floor)
            yield method, weight, bias, *d.tolist(), found


def _side(middle: float, width: float, points: int) -> list[float]:
    return np.linspace(middle - width / 2, middle + width / 2, points).tolist()


def _trajectory(
    problem: Problem, tracing: Tracing, method: str, start: int
) -> Iterator[tuple[str | float, ...]]:
    point = problem.starts[start]
    for step in range(tracing.steps + 1):
        lin = problem.linearize(point)
        loss = float(lin.losses.sum())
        yield method, start, step, *point, loss
        if loss <= REACHED or not problem.contains(point):
            return
        d = update(method, lin, tracing.damping)
        found, length = indicator(lin, lin.jvp(d)), norm(d)
        if not (length and found.fisher_norm**2):  # a damping so large that nothing moves
            return
        eta = min(tracing.step_length / length, found.slope / found.fisher_norm**2)
        weight, bias = d.tolist()
        point = (point[0] - eta * weight, point[1] - eta * bias)
