"""Blocks that are diagonal in some bases: of parameters, or of KFAC's eigenvectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.curvature.eigen import NEAR, Eigen
from evalkit.curvature.kfac import gradient_factors, input_factors
from evalkit.curvature.kronecker import Cut, Solution
from evalkit.curvature.noise import Moments, Noise, noises
from evalkit.curvature.pulled import PART, Names, Pulled
from evalkit.curvature.rotated import Rotated
from evalkit.layers.low_rank import LowRank
from evalkit.linearization import LayerFactors
from evalkit.signs import random_signs

CACHED = 1 << 16
"""Numbers that entries are solved for at a time."""


@dataclass(frozen=True, eq=False)
class Diagonal:
    """A block Q diag(s) Q^T of each group, with Q = Qb (x) Qa or the identity.

    Attributes:
        values: s, (groups, out rank + 1, in rank + 1), zero beside the bases; (groups, out, in)
            without bases.
        bases: the factors whose eigenvectors are Qb and Qa, None for the identity.
        within: whether G is known to be zero where s is, and beside Qa.
        noise: what rounding moves.
        unit: the rounding of the evaluation.
        size: out times in.
        mixed: with bases, an estimate of the sum of squares of F_l beside its diagonal in each row,
            along both axes, like s.
    """

    values: Tensor
    bases: tuple[Eigen, Eigen] | None
    within: tuple[bool, bool]
    noise: Noise
    unit: float
    size: int
    mixed: tuple[Tensor, ...]

    @property
    def inputs(self) -> Tensor | None:
        """Qa where it is thin and G lies within it."""
        if self.bases is None or not (self.within[1] and self.bases[1].beside):
            return None
        return self.bases[1].vectors

    def rotated(self, gradient: Tensor | LowRank) -> Tensor | Rotated:
        """Return a gradient, (groups, out, in) float64, in the bases of the block."""
        if self.bases is None:
            assert isinstance(gradient, Tensor)
            return gradient
        return Rotated.of(gradient, (self.bases[0].vectors, self.bases[1].vectors), self.within)

    def solve(self, gradient: Tensor | Rotated, damping: float) -> Solution:
        """Return (Q diag(s) Q^T + lambda I)^-1 G, the pseudo-inverse without damping.

        Entries of s move as sums of squares do whose terms are moved. An eigenvector i turns
        towards j by dA_ij / (l_i - l_j), at most by 1, and with it the matrix, by (s_i - s_j) times
        that off its diagonal and by at most 2 sqrt(s_i s_j) times that on it.

        Args:
            gradient: G, in the bases.
            damping: lambda.
        """
        if not isinstance(gradient, Rotated):
            return self._by_entries(gradient, damping)
        assert self.bases is not None
        s, size = self.values, self.size
        least = s.amax((1, 2), keepdim=True) * size * torch.finfo(torch.float64).eps
        known = s > least
        shrunk = s.where(known, 0.0) + damping
        out, inside = (basis.void for basis in self.bases)
        void = (out & self.within[0])[:, :, None] | (inside & self.within[1])[:, None, :]
        empty = ~known & self.within[0]
        cut = Cut.of(gradient.squares(), shrunk, known, empty, void, damping, self.unit)
        turned = gradient.scaled(cut.inverse)
        if damping == 0 and bool((known & (s <= self._near(least))).any()):
            return Solution(turned.kept(), math.inf, math.inf, cut.lost)
        squares, spread = turned.squares(), self.spread(s)
        far = spread * squares + self.noise.gradient * gradient.entries()
        slope = (spread * squares.square()).sum() + 4 * self.noise.gradient * squares.sum()
        added, along = _turned(s, (self.mixed[0], self.mixed[1]), turned, self.bases)
        far, slope = far + added, slope + along
        far = far * cut.inverse.square() + cut.hidden
        return Solution(
            turned.kept(),
            float(far.sum()),
            float(slope) + cut.slope,
            cut.lost,
            lambda generator: turned.drawn(far, generator).joined(),
            float(squares.sum()),
            lengths=squares.sqrt(),
        )

    def _by_entries(self, gradient: Tensor, damping: float) -> Solution:
        """Return the solution without bases, some rows at a time, so that all stays in a cache."""
        least = self.values.amax((1, 2), keepdim=True) * self.size * torch.finfo(torch.float64).eps
        near = self._near(least)
        total = torch.linalg.vector_norm(gradient, dim=(1, 2), keepdim=True).square()
        step = max(1, CACHED // gradient[:, 0].numel())
        parts = [slice(i, i + step) for i in range(0, gradient.shape[1], step)]

        def solved(here: slice) -> tuple[Cut, Tensor, Tensor]:
            """Return the inverse, the solution, and the mean squares of how far it moves."""
            s, g = self.values[:, here], gradient[:, here]
            known = s > least
            empty, none = ~known & self.within[0], torch.zeros_like(known)
            shrunk = s.where(known, 0.0) + damping
            cut = Cut.of(g.square(), shrunk, known, empty, none, damping, self.unit, total)
            x = g * cut.inverse
            far = self.spread(s) * x.square() + self.noise.gradient
            return cut, x, far * cut.inverse.square() + cut.hidden

        matrix, hazy = torch.empty_like(gradient), False
        moved = slope = hidden = lost = square = 0.0
        for here in parts:
            s = self.values[:, here]
            cut, x, far = solved(here)
            matrix[:, here], squares = x, x.square()
            hazy = hazy or (damping == 0 and bool(((s > least) & (s <= near)).any()))
            moved, lost = moved + float(far.sum()), lost + cut.lost
            square, hidden = square + float(squares.sum()), hidden + cut.slope**0.5
            slope += float((self.spread(s) * squares.square()).sum())
        if hazy:
            return Solution(matrix, math.inf, math.inf, lost)

        def deviation(generator: torch.Generator) -> Tensor:
            found = random_signs(gradient.shape, generator, gradient)
            for here in parts:
                found[:, here] *= solved(here)[2].sqrt()
            return found

        slope += 4 * self.noise.gradient * square + hidden**2
        return Solution(matrix, moved, slope, lost, deviation, square)

    def _near(self, least: Tensor) -> Tensor:
        """Return up to where rounding may have lifted entries of s above the cut-off."""
        return least * max(2 * self.unit / torch.finfo(torch.float64).eps, NEAR)

    def spread(self, s: Tensor) -> Tensor:
        """Return the mean square moves of entries of s."""
        rows: Moments = self.noise.rows
        return 4 * rows.mean_move(self.size) * s + (rows.shift(self.size) / len(s)) ** 2

    def product(self, x: Tensor) -> Tensor:
        """Return the undamped block applied to matrices, (..., groups, out, in) float64."""
        if self.bases is None:
            return self.values * x
        out, inside = (basis.vectors for basis in self.bases)
        return out @ (self.values[:, :-1, :-1] * (out.mT @ x @ inside)) @ inside.mT


def _turned(
    s: Tensor, mixed: tuple[Tensor, Tensor], x: Rotated, bases: tuple[Eigen, Eigen]
) -> tuple[Tensor, Tensor]:
    """Return what turns of the bases add to the mean square of dM X, and to that of X . dM X.

    Args:
        s: the diagonal.
        mixed: the squares of what F_l has beside it in each row, along either axis.
        x: X in the bases.
        bases: the factors.
    """
    squares, far, along = x.squares(), torch.zeros_like(s), s.new_zeros(())
    for axis, basis in enumerate(bases):
        values = basis.values
        gaps = (values[:, :, None] - values[:, None, :]).square()
        angles = basis.variances / (gaps + basis.variances).clamp_min(1e-300)
        angles.diagonal(dim1=1, dim2=2).zero_()
        one, own, beside = (s, squares, mixed[1]) if axis else (s.mT, squares.mT, mixed[0].mT)
        back = angles.mT  # the last row is a sum over entries, and so are the squares
        apart = one.square() * (own @ back) - 2 * one * ((one * own) @ back)
        apart = (apart + (one.square() * own) @ back).clamp_min(0.0)
        on = 4 * torch.minimum(one * (one @ angles), beside * angles.amax(1)[:, None])
        added = apart + on * own
        far = far + (added if axis else added.mT)
        # X . dM X sums (s_i - s_j) x_i x_j over the other axis before it is squared.
        inner = x.inner if axis else x.inner.mT
        products = (one[:, :-1, :-1] * inner).mT @ inner
        along = along + (angles[:, :-1, :-1] * (products - products.mT).square()).sum() / 2
        along = along + (on * own.square()).sum()
        along = along + (angles[:, :-1, -1] * (one.square() * own).sum(1)[:, :-1]).sum() * (
            own[:, :, -1].sum()
        )
    return far, along


def diagonal(pulled: Pulled) -> dict[Names, Diagonal]:
    """Return diag(F_l) of each layer, sum_kn P_kn^2 entry by entry."""
    found = pulled.lin.shared(("diagonal", pulled.source.key), lambda: _squares(pulled, {}))
    return _blocks(pulled, found, {})


def ekfac(pulled: Pulled) -> dict[Names, Diagonal]:
    """Return (Qb (x) Qa) diag(s) (Qb (x) Qa)^T of each layer, the bases those of KFAC (expand).

    s_pq = sum_kn (Qb^T P_kn Qa)_pq^2, squared after the sum over positions: of all matrices that
    are diagonal in these bases the nearest to F_l.
    """
    inside, out = input_factors(pulled, "expand"), gradient_factors(pulled, "expand")
    bases = {names: (out[names], inside[names]) for names in out}
    found = pulled.lin.shared(("ekfac", pulled.source.key), lambda: _squares(pulled, bases))
    return _blocks(pulled, found, bases)


def _blocks(
    pulled: Pulled, found: dict[Names, list[Tensor]], bases: dict[Names, tuple[Eigen, Eigen]]
) -> dict[Names, Diagonal]:
    moved, unit = noises(pulled), pulled.lin.unit
    within = (pulled.given.rest is None, True)
    return {
        names: Diagonal(
            values,
            bases.get(names),
            within,
            moved[names],
            unit,
            pulled.blocks[names].size,
            (*mixed,),
        )
        for names, (values, *mixed) in found.items()
    }


def _squares(pulled: Pulled, bases: dict[Names, tuple[Eigen, Eigen]]) -> dict[Names, list[Tensor]]:
    """Return sum_kn P'^2 entry by entry for P' = Qb^T P Qa, and with bases :attr:`Diagonal.mixed`.

    The square of sum_kn P'_pq (P' z)_p - s_pq z_q, z random signs, is in the mean the sum of
    squares of (F_l)_pq,pj over j. With bases all have a row and a column beside them.
    """
    generator = torch.Generator().manual_seed(0)
    totals: dict[Names, list[Tensor]] = {}
    signs: dict[Names, tuple[Tensor, Tensor]] = {}
    for part in pulled.parts():
        if not isinstance(part.found, LayerFactors):
            continue
        names, a = part.names, part.found.inputs.double()
        d = part.found.output_gradients.double()
        if bases:
            out, inside = bases[names]
            a, d = a @ inside.vectors[:, None], d @ out.vectors[:, None, None]
        if names not in totals:
            shape = (len(a), d.shape[4], a.shape[3])
            totals[names] = [a.new_zeros(shape) for _ in range(3 if bases else 1)]
            signs[names] = (
                random_signs(a[0, 0, 0].shape, generator, a[0, 0, 0]),
                random_signs(d[0, 0, 0, 0].shape, generator, d[0, 0, 0, 0]),
            )
        for total, added in zip(
            totals[names], _sums(a, d, signs[names] if bases else None), strict=True
        ):
            total += added
    if not bases:
        return totals
    found = {}
    for names, (s, rows, columns) in totals.items():
        z, y = signs[names]
        mixed = (columns - s * y[:, None]).square(), (rows - s * z).square()
        found[names] = [torch.nn.functional.pad(one, (0, 1, 0, 1)) for one in (s, *mixed)]
    return found


def _sums(a: Tensor, d: Tensor, signs: tuple[Tensor, Tensor] | None) -> Iterator[Tensor]:
    """Yield sums over samples of P_pq^2, P_pq (P z)_p and P_pq (y^T P)_q, P = sum_t d a^T.

    Args:
        a: (groups, n, T, in).
        d: (groups, K, n, T, out).
        signs: z and y; None for the first sum alone.
    """
    if a.shape[2] == 1:  # one position
        one, many = a[:, :, 0], d[:, :, :, 0]  # (groups, n, in), (groups, K, n, out)
        squares = many.square().sum(1).mT
        yield squares @ one.square()
        if signs is None:
            return
        z, y = signs
        yield squares @ (one * (one @ z)[:, :, None])
        yield (many * (many @ y)[..., None]).sum(1).mT @ one.square()
        return
    count = 1 if signs is None else 3
    total = [a.new_zeros(a.shape[0], d.shape[4], a.shape[3]) for _ in range(count)]
    step = max(1, PART // max(1, d.shape[1] * total[0].numel()))
    for i in range(0, a.shape[1], step):
        rows = torch.einsum("gknto,gnti->gknoi", d[:, :, i : i + step], a[:, i : i + step])
        total[0] += rows.square().sum((1, 2))
        if signs is None:
            continue
        z, y = signs
        total[1] += (rows * (rows @ z)[..., None]).sum((1, 2))
        total[2] += (rows * (y @ rows)[..., None, :]).sum((1, 2))
    yield from total
