"""A factorised Gram matrix: solves for every damping, and what rounding does to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DECOMPOSED = 4 * float(np.finfo(np.float64).eps)
"""Error of singular values and vectors, as a part of the largest."""
CONSISTENT = 1e-8
"""Part of a right side outside of the range of K that counts as rounding."""

SMALLEST = float(np.finfo(np.float64).tiny / np.finfo(np.float64).eps)
"""Squared norm below which a row counts as zero: inner products are rounded to whole numbers of the
smallest one there."""


@dataclass(frozen=True)
class GramFactor:
    """Eigendecomposition K = U diag(e) U^T of a Gram matrix, restricted to its range.

    Attributes:
        vectors: U, (M, rank) float64, orthonormal columns.
        eigenvalues: e, (rank,) float64, positive, falling.
        norms: |G_n| of the rows that K holds the inner products of: (M,) float64.
        squared: K was factorised itself, so that its rounding meets the squares of G's singular
            values; otherwise its rows G were.
        level: singular values of G below which rounding hides what is there.
        complete: the rank is all that M rows of P numbers can have, those that repeat aside.
        certain: it is that, or the smallest direction is clearly above rounding.
        lost: the decomposition has fewer directions than the rank, for rows that are shorter than
            its error of the longest.
    """

    vectors: Tensor
    eigenvalues: Tensor
    norms: Tensor
    squared: bool
    level: float
    complete: bool
    certain: bool
    lost: bool = False

    @property
    def rank(self) -> int:
        """Number of linearly independent per-sample gradients."""
        return len(self.eigenvalues)

    def solve(self, right: Tensor, damping: float) -> Tensor:
        """Return U diag(1 / (e + lambda)) U^T b: (M,).

        This is (K + lambda I)^-1 b without its part in the null space of K. That part is mapped
        to zero by G^T, so no update loses anything, and duplicates cannot blow it up.

        Args:
            right: b, (M,).
            damping: lambda >= 0; 0 gives the pseudo-inverse.
        """
        right = right.double()
        return self.vectors @ ((self.vectors.T @ right) / (self.eigenvalues + damping))

    def image(self, right: Tensor, damping: float) -> Tensor:
        """Return K (K + lambda I)^-1 b: (M,); arguments as :meth:`solve`."""
        kept = self.eigenvalues / (self.eigenvalues + damping)
        return self.vectors @ (kept * (self.vectors.T @ right.double()))

    def length(self, weights: Tensor) -> float:
        """Return |G^T a| for weights a, (M,)."""
        return float((self.eigenvalues.sqrt() * (self.vectors.T @ weights)).norm())

    def shift(self, noise: Tensor, damping: float) -> float:
        """Return how long G^T (K + lambda I)^-1 b is for random b with entries of sizes v, (M,)."""
        spread = self.eigenvalues / (self.eigenvalues + damping).square()
        return math.sqrt(float(noise.square() @ (self.vectors.square() @ spread)))

    def overlooked(self, damping: float) -> float:
        """Return the most that s^2 / (s^2 + lambda) is for directions of length s in hiding.

        A right side G x fits a dependence of rows whether or not that is exact, so that only what G
        can have hidden says how much of x remains along them. Rows whose inner products depend on
        each other in spite of their rounding are taken to repeat.
        """
        if self.complete or self.squared or damping == 0:
            return 0.0  # without damping, :meth:`movement` knows of none
        return self.level**2 / (self.level**2 + damping)

    def with_decomposition(self, noise: Tensor) -> Tensor:
        """Return how far rows move, (M,), where rounding moves them by ``noise`` beforehand.

        The decomposition itself leaves an error of the size of the longest row in every row.
        """
        return torch.hypot(noise, DECOMPOSED * self.norms.max())

    def movement(self, right: Tensor, damping: float, noise: Tensor, unit: float) -> float:
        """Return an estimate of how far rounding moves d = G^T a, a = (K + lambda I)^-1 b.

        To first order a change delta G of the rows, of independent entries with lengths v_n, gives

            |delta d|^2 = sum_n a_n^2 v_n^2 + |d|^2 sum_n v_n^2 [(K + lambda I)^-1]_nn,

        and a change of K by itself, of entries up to u |G_n| |G_m|,

            |delta d|^2 = 2 u^2 sum_n a_n^2 |G_n|^2 sum_n |G_n|^2 [K (K + lambda I)^-2]_nn.

        Parts of G of length s that rounding hides would add up to s / (s^2 + lambda) times the part
        of b that lies outside of the range of K, and a lost row of length e to no more than
        e (|b_n| + e |d|) / lambda.

        Args:
            right: b, (M,).
            damping: lambda >= 0.
            noise: v_n, (M,).
            unit: u, the rounding of the evaluation that K comes from.
        """
        right = right.double()
        noise = self.with_decomposition(noise)
        inside = self.vectors.T @ right
        shrunk = 1 / (self.eigenvalues + damping)
        weights = self.vectors @ (inside * shrunk)
        length = float((self.eigenvalues * (inside * shrunk).square()).sum().sqrt())
        squares = self.vectors.square()
        moved = float((weights * noise).square().sum())
        moved += length**2 * float(noise.square() @ (squares @ shrunk))
        if self.squared:
            spread = squares @ (self.eigenvalues * shrunk.square())
            size = float((weights * self.norms).square().sum())
            moved += 2 * unit**2 * size * float(self.norms.square() @ spread)
        outside = right - self.vectors @ inside
        if not self.lost:
            return math.sqrt(moved) + self._hidden(right, outside, damping)
        if damping == 0:  # such a row asks for its own part of b, whatever its length
            return math.inf
        short = self.norms <= DECOMPOSED * self.norms.max()
        sizes = self.norms.where(short, 0.0)
        lost = float((sizes * (right.abs() + sizes * length)).norm()) / damping
        return math.sqrt(moved) + lost + self._hidden(right, outside.where(~short, 0.0), damping)

    def unresolved(self, right: Tensor, damping: float) -> float:
        """Return the part of b^T K (K + lambda I)^-1 b that rounding leaves open.

        Of a direction with eigenvalue e it is min(1, level^2 / e), and what lies outside of the
        range of K counts as e = level^2.

        Args:
            right: b, (M,).
            damping: lambda >= 0.
        """
        right = right.double()
        inside, least = self.vectors.T @ right, self.level**2
        kept = inside.square() * self.eigenvalues / (self.eigenvalues + damping)
        doubt = float((kept * (least / self.eigenvalues).clamp_max(1.0)).sum())
        outside = float((right - self.vectors @ inside).square().sum())
        known = self.certain and not self.lost if damping else self.complete
        if known or outside <= CONSISTENT**2 * float(right.square().sum()):
            return doubt
        return doubt + outside * (least / (least + damping) if damping else 1.0)

    def _hidden(self, right: Tensor, outside: Tensor, damping: float) -> float:
        """Return how long what rounding hides of d may be."""
        if self.complete:
            return 0.0
        part = float(outside.norm())
        consistent = part <= CONSISTENT * float(right.norm())
        if damping == 0:  # a direction however small, as of a saturated unit, asks for its part
            return math.inf
        if consistent:
            return 0.0
        if self.certain:
            return 0.0
        longest = min(self.level, math.sqrt(damping))  # of s / (s^2 + lambda)
        return part * longest / (longest**2 + damping)
