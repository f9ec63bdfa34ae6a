"""SWAN's direction: each layer's gradient with rows of one length, whitened (Ma et al., 2024).

There is no Fisher matrix in it. With D the diagonal matrix of the lengths of the rows of G and
D^-1 G = U diag(s) V^T,

    X = (D^-1 G G^T D^-1)^(+ 1/2) D^-1 G = U V^T,

over the s that are not rounding. Neither the scale of G nor that of a row plays a part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.curvature.kronecker import SEEN, Solution
from evalkit.curvature.noise import noises
from evalkit.curvature.pulled import Names, Pulled
from evalkit.signs import random_signs


@dataclass(frozen=True, eq=False)
class Whitening:
    """Takes a gradient to its whitened form, in place of a block that is solved with.

    Attributes:
        center: whether the mean of each row is taken off it first.
        noise: the mean square move of an entry of the gradient.
        unit: the rounding of the evaluation.
    """

    center: bool
    noise: float
    unit: float

    def rotated(self, gradient: Tensor) -> Solution:
        """Return the whitened form of a gradient, (groups, out, in) float64."""
        found = [self._whitened(one) for one in gradient]
        matrix = torch.stack([one.matrix for one in found])
        moved, slope = sum(one.moved for one in found), sum(one.slope for one in found)
        if not math.isfinite(moved):
            return Solution(matrix, moved, slope)

        def deviation(generator: torch.Generator) -> Tensor:
            return torch.stack([one.change(generator) for one in found])

        return Solution(matrix, moved, slope, deviation=deviation)

    def solve(self, gradient: Solution, damping: float) -> Solution:
        """Return what :meth:`rotated` made; the damping plays no part."""
        return gradient

    def _whitened(self, gradient: Tensor) -> Solution:
        """Return the whitened form of one matrix, (out, in), and how far rounding moves it.

        A change E of D^-1 G moves entry (i, j) of U^T X V by (E_ij - E_ji) / (s_i + s_j) in the
        bases, and by E_ij / s_i beside them. What has the size of the rounding in it may be
        anything: in a coarse evaluation it then hides a direction, in float64 it counts as zero.
        """
        rows = gradient - gradient.mean(1, keepdim=True) if self.center else gradient
        (out, inside), coarse = rows.shape, self.unit > torch.finfo(torch.float64).eps
        least = max(self.noise * inside, (self.unit * float(rows.norm())) ** 2 / out)
        lengths = rows.square().sum(1)
        known = lengths > SEEN**2 * least
        hidden = bool((~known & (lengths > 0)).any())
        scales = lengths.rsqrt().where(known, 0.0)
        spread = (least / inside) * scales.square()  # the mean square move of entries, by rows
        u, s, vt = torch.linalg.svd(scales[:, None] * rows, full_matrices=False)
        rounding = float(s[0]) * max(out, inside)
        level = max(rounding * torch.finfo(torch.float64).eps, SEEN * _longest(spread, inside))
        kept = s > level
        hidden = hidden or (bool((~kept & (s > 0)).any()) and min(out, inside) > 1)
        u, s, vt = u[:, kept], s[kept], vt[kept]
        matrix = u @ vt
        if hidden and coarse:
            return Solution(matrix, math.inf, math.inf)
        along = u.square().mT @ spread  # of U^T E, by rows
        inner = (along[:, None] + along) / (s[:, None] + s).square()
        right = along / s.square()  # of each entry in a row of U^T X beside V^T
        below = spread[:, None] / s.square()  # and in X V beside U, at most
        slopes = u.mT @ gradient @ vt.mT
        beside = (u.mT @ gradient - slopes @ vt).square().sum(1) @ right
        beside = beside + ((gradient @ vt.mT - u @ slopes).square() * below).sum()
        slope = float((inner * slopes.square()).sum() + beside)
        moved = float(inner.sum() + (inside - len(s)) * right.sum() + below.sum())

        def deviation(generator: torch.Generator) -> Tensor:
            turned = u @ (random_signs(inner.shape, generator, inner) * inner.sqrt()) @ vt
            across = random_signs(matrix.shape, generator, matrix) * spread.sqrt()[:, None]
            across = u @ ((u.mT @ across) / s[:, None]) + ((across @ vt.mT) / s) @ vt
            return turned + across - u @ (u.mT @ across @ vt.mT) @ vt

        return Solution(matrix, moved, slope, deviation=deviation)


def _longest(spread: Tensor, inside: int) -> float:
    """Return about the largest singular value of noise whose rows have these mean squares."""
    return math.sqrt(float(spread.max()) * inside) + math.sqrt(float(spread.sum()))


def whitening(pulled: Pulled, center: bool = False) -> dict[Names, Whitening]:
    """Return the whitening of every layer; any other parameter is a matrix of one row."""
    moved, unit = noises(pulled), pulled.lin.unit
    return {
        names: Whitening(center and block.example is not None, moved[names].gradient, unit)
        for names, block in pulled.blocks.items()
    }
