"""What a method returns: a direction, as a vector or as cotangents, and how its solver fared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.curvature import BlockMatrix
from evalkit.linearization import ByParameter, Linearization


@dataclass(frozen=True)
class SolverReport:
    """How the solver of an iterative method fared.

    Attributes:
        solver: its name.
        iterations: that it took.
        relative_residual: that of the system that it solved, recomputed from the solution.
        converged: whether one of its tolerances was met.
        error: relative error of gamma that it leaves.
        curable: more digits may lower that error; more iterations would otherwise.
    """

    solver: str
    iterations: int
    relative_residual: float
    converged: bool
    error: float
    curable: bool


@dataclass(frozen=True, eq=False)
class Term:
    """A sum of one-sample gradients, sum_n w_n J_n^T c_n.

    Attributes:
        cotangents: c, like logits; the same object for every damping.
        weights: w, (N,).
    """

    cotangents: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Rounding:
    """How far rounding is expected to have moved an update.

    Attributes:
        moved: |delta d|, an estimate.
        slope: the slope of d^T g.
        deviation: draws such a delta d where the method can.
    """

    moved: float
    slope: float
    deviation: Callable[[], Tensor | ByParameter] | None = None


@dataclass(frozen=True, eq=False)
class VectorUpdate:
    """A direction given as a vector.

    Attributes:
        vector: d, (P,) or by parameter; the parameters move along -d.
        report: the report of the solver, None for methods without one.
        rounding: how far what d was solved from has moved it, where the method knows; None for a
            direction whose entries are as exact as its precision.
        matrix: the matrix that d was solved with where it is one by layers, for its comparison with
            the exact one; None for other methods.
        lengths: of the parts of d, (M,), which are orthogonal to each other and whose directions
            are the same at every damping: with one matrix, sums of directions are sums of lengths.
            None where it is not made that way.
    """

    vector: Tensor | ByParameter
    report: SolverReport | None = None
    rounding: Rounding | None = None
    matrix: BlockMatrix | None = None
    lengths: Tensor | None = None

    def direction(self, lin: Linearization) -> Tensor:
        """Return d: (P,)."""
        return self.vector if isinstance(self.vector, Tensor) else self.vector.vector()


@dataclass(frozen=True, eq=False)
class CotangentUpdate:
    """A direction given as cotangents c with d = sum_n J_n^T c_n, as sums of gradients are.

    Scores need J d alone, which takes less than d: d is not formed unless somebody asks for it.

    Attributes:
        cotangents: c, like logits.
        terms: where c is a sum of a few fixed cotangents with weights, these; scores at several
            dampings then share their products.
        slope: d^T g, where the method knows it with more digits than J d gives: r^T J d of a
            direction that is dominated by samples with small gradients cancels.
        rounding: how far rounding has moved d, where the method knows; None for a direction whose
            entries are as exact as its precision.
        report: the report of the solver, None for methods without one.
    """

    cotangents: Tensor
    terms: tuple[Term, ...] = ()
    slope: float | None = None
    rounding: Rounding | None = None
    report: SolverReport | None = None

    @classmethod
    def summed(
        cls, terms: Sequence[Term], slope: float | None, rounding: Rounding | None
    ) -> CotangentUpdate:
        """Return the sum of some terms as an update."""
        parts = [
            term.weights.view(-1, *[1] * (term.cotangents.dim() - 1)) * term.cotangents
            for term in terms
        ]
        return cls(torch.stack(parts).sum(0), tuple(terms), slope, rounding)

    def direction(self, lin: Linearization) -> Tensor:
        """Return d: (P,)."""
        return lin.vjp(self.cotangents)


Update = VectorUpdate | CotangentUpdate
