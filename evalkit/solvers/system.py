"""The system (F + lambda I) x = g, and the steps of conjugate gradients in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.indicator import Indicator, indicator_terms
from evalkit.linearization import Linearization
from evalkit.solvers.solved import rounding
from evalkit.solvers.spaces import Space
from evalkit.solvers.stopping import Stopping

OnIteration = Callable[[int, float], None]
"""Called with each iteration and its gamma."""


@dataclass(frozen=True, eq=False)
class Point:
    """Where CG is.

    Attributes:
        x: kept like the residual.
        jx: J x, like logits.
        square: |res|^2, as it was last computed from x.
        depth: the largest so far of 2 g^T x - x^T A x, twice the fall of the quadratic model.
        gammas: those of x and the iterates before it.
    """

    x: Tensor
    jx: Tensor
    square: float
    depth: float = 0.0
    gammas: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction v to go along.

    Attributes:
        v: kept like the residual.
        jv: J v, like logits.
        sjv: S J v, like logits.
        curvature: v^T A v.
    """

    v: Tensor
    jv: Tensor
    sjv: Tensor
    curvature: Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """A step along a direction.

    Attributes:
        way: the direction.
        alpha: how far along it.
        fall: twice the fall of the quadratic model.
        to: where it leads.
    """

    way: Direction
    alpha: Tensor
    fall: float
    to: Point


@dataclass(frozen=True, eq=False)
class System:
    """A x = g with A = F + lambda I, and when a solution is near enough.

    Attributes:
        lin: the model and batch.
        space: how vectors are kept.
        damping: lambda.
        stopping: when to stop.
        on_iteration: called with the iteration and its gamma.
        period: iterations after which the residual is computed afresh, so that rounding cannot pile
            up in its recurrence.
    """

    lin: Linearization
    space: Space
    damping: float
    stopping: Stopping
    on_iteration: OnIteration | None
    period: int = 50

    def origin(self) -> Point:
        """Return x = 0."""
        zero = torch.zeros_like(self.lin.logit_gradients)
        return Point(torch.zeros_like(self.space.gradient), zero, self.lin.gradient_norm**2)

    def solved(self, square: float) -> bool:
        """Return whether a residual is small enough, from |res|^2."""
        return square <= self.stopping.tolerance**2 * self.lin.gradient_norm**2

    def near_floor(self, at: Point) -> bool:
        """Return whether gamma is near enough to the floor."""
        goal = self.stopping.goal(self.lin.gamma_floor)
        return goal is not None and at.gammas[-1] <= goal

    def gained(self, at: Point, since: Point) -> bool:
        """Return whether the residual or the quadratic model fell from one point to another."""
        return at.square < since.square or at.depth > (1 + rounding(self.lin)) * since.depth

    def model(self, x: Tensor, jx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x^T F x, g^T x and 2 g^T x - x^T A x, twice the quadratic model's fall to x."""
        quadratic, slope = indicator_terms(self.lin, jx)
        return quadratic, slope, 2 * slope - quadratic - self.damping * self.space.inner(x, x, jx)

    def direction(self, v: Tensor, jv: Tensor) -> Direction:
        """Return v with its curvature."""
        sjv = self.lin.output_fisher(jv)
        curvature = (jv * sjv).sum() + self.damping * self.space.inner(v, v, jv)
        return Direction(v, jv, sjv, curvature)

    def conjugate(self, to: Direction, others: Iterable[Direction]) -> Direction:
        """Return a direction without its parts along others, in the inner product of A."""
        v, jv = to.v, to.jv
        for one in others:
            # v^T F s = (J v) . (S J s): in logit space, whatever P is.
            inner = (jv * one.sjv).sum() + self.damping * self.space.inner(one.v, v, jv)
            part = inner / one.curvature
            v, jv = v - part * one.v, jv - part * one.jv
        return self.direction(v, jv)

    def step(self, at: Point, way: Direction, descent: Tensor | float) -> Step | None:
        """Return the best step along a direction v; None where rounding has taken it over.

        Then no curvature is left along it, or the step would not deepen the quadratic model, as
        every step does in exact arithmetic. Numbers that decide are read at once, so that a GPU is
        waited for once.

        Args:
            at: where to start.
            way: the direction.
            descent: res^T v.
        """
        alpha = descent / way.curvature
        x, jx = at.x + alpha * way.v, at.jx + alpha * way.jv
        # Curvature below zero is rounding, depth that falls too: exact steps have neither.
        decisive = torch.stack([way.curvature, alpha, *self.model(x, jx)])
        curvature, far, quadratic, slope, depth = decisive.tolist()
        if not 0 < curvature < math.inf or depth < (1 - rounding(self.lin)) * at.depth:
            return None
        gammas = (*at.gammas, Indicator(math.sqrt(quadratic), slope).gamma)
        if self.on_iteration is not None:
            self.on_iteration(len(gammas), gammas[-1])
        to = Point(x, jx, at.square, max(at.depth, depth), gammas)
        return Step(way, alpha, far * far * curvature, to)

    def next_residual(self, res: Tensor, step: Step) -> Tensor:
        """Return res - alpha A v, the residual after a step by its recurrence."""
        product = self.space.adjoint(step.way.sjv) + self.damping * step.way.v
        return res - step.alpha * product

    def residual(self, x: Tensor, jx: Tensor) -> Tensor:
        """Return g - A x."""
        product = self.space.adjoint(self.lin.output_fisher(jx))
        return self.space.gradient - product - self.damping * x
