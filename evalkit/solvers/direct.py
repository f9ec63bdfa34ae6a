"""The exact natural gradient by a direct solve in logit space, where that space is small."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.doubts import MARKED
from evalkit.indicator import indicator_terms
from evalkit.linearization import Linearization
from evalkit.reductions import norm
from evalkit.settings import check_damping
from evalkit.solvers.logit_space import LogitSpace, Solve
from evalkit.solvers.solved import SHORT, Solved, rounding

SAFETY = 4.0
"""What the difference of two depths stands for."""

REFINEMENTS = 4
"""Solves with the recomputed residual, at most."""


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A solution, as the model's own products see it.

    Attributes:
        y: like logits.
        x: J^T y, (P,).
        depth: twice the fall of the quadratic model there, 2 g^T x - x^T A x.
        residual: q with J^T q = g - A x, like logits.
        length: |g - A x|.
    """

    y: Tensor
    x: Tensor
    depth: float
    residual: Tensor
    length: float

    def better(self, than: _Candidate, within: float) -> bool:
        """Return whether it is deeper, or within rounding as deep and nearer to the equations."""
        if self.depth > (1 + within) * than.depth:
            return True
        return self.depth >= (1 - within) * than.depth and self.length < than.length


def solve_directly(lin: Linearization, damping: float, tolerance: float) -> Solved | None:
    """Solve (F + lambda I) x = g in logit space, with the matrix of :class:`LogitSpace`.

    The residual is recomputed from x with products of the model's graph and solved for again, while
    that deepens 2 g^T x - x^T A x, A = F + lambda I, or lowers the residual. Depth comes first:
    where a sample is confidently wrong, its part of x is long enough to leave rounding in the
    others' residuals that exceeds g, and x is near the best all the same. Each x is taken times
    the number that deepens it most, g^T x / x^T A x, which is one but for rounding.

    Where x is not as deep as the matrix has it, y has large parts that J^T maps to nothing but
    rounding; the eigenvalues, which take longer, then tell which.

    Args:
        lin: the model and batch; H is computed once for all dampings.
        damping: lambda >= 0; 0 gives the pseudo-inverse.
        tolerance: converged when |g - (F + lambda I) x| <= tolerance |g|.

    Returns:
        The solution, or None where a step along g is deeper: S may be too small to be seen.

    Raises:
        EvalkitError: the damping is out of range.
    """
    damping = check_damping(damping)
    space = lin.shared("logit space", lambda: LogitSpace.exact(lin))
    y, r = torch.zeros_like(lin.logit_gradients), lin.logit_gradients
    x = torch.zeros_like(lin.gradient)
    best = start = _Candidate(y, x, 0.0, r, lin.gradient_norm)
    enough, iterations, open_part, deepest = tolerance * lin.gradient_norm, 0, 0.0, 0.0
    # Eigenvalues take far longer: they are asked where Cholesky's solution does not hold up.
    for way in (space.by_cholesky, space.by_eigenvalues):
        solve = way(damping)
        if solve is None:
            continue
        found, count = _refined(lin, damping, solve, start, enough)
        iterations += count
        best = found if found.better(best, rounding(lin)) else best
        depth = space.depth(solve(r))
        deepest = max(deepest, depth)
        if way == space.by_eigenvalues:
            open_part = space.unresolved(damping)
        # Solved, or as deep as the matrix has it: then rounding of J^T y took nothing away.
        if best.length <= enough or best.depth >= (1 - SHORT) * depth:
            break
    # The best step along g costs nothing to compare with, and no solution may be less deep.
    along_g, slope = (float(term) for term in indicator_terms(lin, lin.gradient_jvp))
    if best.depth * (along_g + damping * slope) < slope**2:
        return None
    error = _left(lin, damping, best, deepest, open_part)
    reached = lin.gamma_floor * math.sqrt(best.depth)
    above = 0.0 if not best.depth else 1 / reached - 1 if reached > 0 else math.inf
    hidden = damping == 0 and above > MARKED and not space.complete
    if hidden or error >= 1:  # a direction that rounding hides may lead down to the floor
        error = max(error, above)
    relative = best.length / lin.gradient_norm if lin.gradient_norm > 0 else 0.0
    converged = relative <= tolerance
    return Solved(
        cotangents=best.y,
        vector=best.x,
        solver="direct",
        iterations=iterations,
        converged=converged,
        relative_residual=relative,
        gammas=(),
        gamma_floor=lin.gamma_floor,
        status="residual" if converged else "breakdown",
        error=error,
    )


def _left(
    lin: Linearization, damping: float, best: _Candidate, deepest: float, unresolved: float
) -> float:
    """Return an estimate of the relative error of gamma that the solve leaves.

    With D = g^T x and a part e of D missed, |x - x*|_A^2 = e D. Undamped, 1 / gamma^2 = D at its
    largest, and gamma is off by e / 2. Damping leaves gamma a slope along x - x* of
    lambda |x| |x - x*| / D at most, which adds sqrt(e s) with s = lambda |x|^2 / D.

    Args:
        lin: the model and batch.
        damping: lambda.
        best: the solution.
        deepest: D by the matrix of logit space.
        unresolved: the part of D that rounding leaves open.
    """
    if not best.depth:
        return 0.0
    missed = SAFETY * (abs(deepest - best.depth) + unresolved) / best.depth + lin.unit
    damped = damping * norm(best.x) ** 2 / best.depth
    return missed / 2 + math.sqrt(missed * damped)


def _refined(
    lin: Linearization, damping: float, solve: Solve, best: _Candidate, enough: float
) -> tuple[_Candidate, int]:
    """Return the best of a few solutions, each corrected by its residual, and their number."""
    for count in range(REFINEMENTS):
        if best.length <= enough:
            return best, count
        found = _scaled(lin, damping, best.y + solve(best.residual))
        if found is None or not found.better(best, rounding(lin)):
            return best, count + 1
        best = found
    return best, REFINEMENTS


def _scaled(lin: Linearization, damping: float, y: Tensor) -> _Candidate | None:
    """Return the multiple of x = J^T y that is deepest, None where none leads down."""
    x = lin.vjp(y)
    jx = lin.jvp(x).double()
    # Both through the model's graph, which knows nothing of the matrix that y came from.
    quadratic, slope = (float(term) for term in indicator_terms(lin, jx))
    curvature = quadratic + damping * norm(x) ** 2
    if not (slope > 0 and curvature > 0):
        return None
    scale = slope / curvature
    if abs(scale - 1) <= rounding(lin):  # so that y, x and the residual stay what was computed
        scale = 1.0
    depth = scale * (2 * slope - scale * curvature)
    residual = lin.logit_gradients - scale * (lin.output_fisher(jx) + damping * y)
    return _Candidate(scale * y, scale * x, depth, residual, length=lin.vjp_norm(residual))
