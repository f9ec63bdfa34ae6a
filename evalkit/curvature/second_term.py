"""Two Kronecker products for each block: one of them, and the nearest to what it leaves.

With F_l rearranged to R, as in :mod:`evalkit.curvature.kpsvd`, what a product B1 (x) A1 leaves is
R - vec B1 vec A1^T, and the nearest to it is a leading singular pair. R maps symmetric matrices to
symmetric and antisymmetric to antisymmetric; pairs are looked for among the symmetric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evalkit.curvature.eigen import Eigen, cut_off
from evalkit.curvature.kfac import Sharing, gradient_factors, input_factors
from evalkit.curvature.kpsvd import Layer, layers, nearest, positive
from evalkit.curvature.noise import noises
from evalkit.curvature.pulled import Names, Pulled
from evalkit.curvature.singular import Singular, leading
from evalkit.curvature.two_terms import Side, TwoTerms
from evalkit.factor import DECOMPOSED

FLOOR = 0.1
"""The least that a second term leaves of the first, unless another is asked for."""
NOTHING = 16 * torch.finfo(torch.float64).eps
"""Singular value of what is left, as a part of the rank times the first, that may be rounding."""

Moved = Callable[[Tensor], Tensor]
"""Tells how far rounding moves a factor: the mean squares of what it adds in a basis, as the
variances of :class:`evalkit.curvature.eigen.Eigen`. A basis is given in that of KFAC's factor."""


@dataclass(frozen=True, eq=False)
class Term:
    """A product B (x) A of each group in the bases of KFAC's factors.

    Attributes:
        out: B, (groups, rank, rank) symmetric.
        inside: A.
        moved: how far rounding moves both.
    """

    out: Tensor
    inside: Tensor
    moved: tuple[Moved, Moved]


Find = Callable[[Names, Layer], tuple[Term, Term]]


def deflation(pulled: Pulled, floor: float = FLOOR) -> dict[Names, TwoTerms]:
    """Return KPSVD's B1 (x) A1 and the nearest B2 (x) A2 to what it leaves of each F_l."""

    def find(names: Names, layer: Layer) -> tuple[Term, Term]:
        first = nearest(pulled)[names]
        term = _nearest_term(layer, first)
        return term, _left_by(layer, term, first.gaps[0])

    return _blocks(pulled, "deflation", floor, find)


def lanczos(pulled: Pulled, floor: float = FLOOR) -> dict[Names, TwoTerms]:
    """Return the nearest B1 (x) A1 + B2 (x) A2 to each F_l, both found in one search.

    It is the matrix of :func:`deflation`.
    """

    def find(names: Names, layer: Layer) -> tuple[Term, Term]:
        both = positive(_search(layer, layer.outer, layer.inner, 2))
        return _nearest_term(layer, both), _second_term(layer, both, 1, both.squares[0].sqrt(), ())

    return _blocks(pulled, "lanczos", floor, find)


def kfac_corrected(
    pulled: Pulled, sharing: Sharing = "expand", floor: float = FLOOR
) -> dict[Names, TwoTerms]:
    """Return KFAC's B (x) A and the nearest B2 (x) A2 to what it leaves of each F_l."""
    inside, out = input_factors(pulled, sharing), gradient_factors(pulled, sharing)

    def find(names: Names, layer: Layer) -> tuple[Term, Term]:
        b = _in_bases(out[names], layer.bases[0])
        a = _in_bases(inside[names], layer.bases[1])
        first = Term(b[0], a[0], (b[1], a[1]))
        return first, _left_by(layer, first, None)

    return _blocks(pulled, f"kfac-corrected {sharing}", floor, find)


def _blocks(pulled: Pulled, key: str, floor: float, find: Find) -> dict[Names, TwoTerms]:
    """Return the blocks of terms, which are found once for all floors."""
    lin, moved = pulled.lin, noises(pulled)

    def compute() -> dict[Names, tuple[Side, Side]]:
        found = {}
        for names, layer in layers(pulled).items():
            first, second = find(names, layer)
            out = _side(layer.bases[0], first.out, second.out, first.moved[0], second.moved[0])
            a = _side(layer.bases[1], first.inside, second.inside, first.moved[1], second.moved[1])
            found[names] = out, a
        return found

    sides = lin.shared((key, pulled.source.key), compute)
    within = (pulled.given.rest is None, True)
    return {
        names: TwoTerms(out, inside, within, moved[names].gradient, lin.unit, floor)
        for names, (out, inside) in sides.items()
    }


def _side(basis: Eigen, first: Tensor, second: Tensor, *moved: Moved) -> Side:
    """Return the factors of a side in eigenvectors of the first.

    What KFAC's factor has no eigenvalue for is rounding, and keeps to itself.

    Args:
        basis: KFAC's factor.
        first: in its basis, positive semi-definite.
        second: in its basis.
        moved: how far rounding moves them.
    """
    size, void = basis.vectors.shape[1], basis.void[:, :-1]
    kept = basis.kept[:, :-1] & ~void
    known = (kept[:, :, None] & kept[:, None, :]).to(first)
    first, second = (known * (one + one.mT) / 2 for one in (first, second))
    largest = first.diagonal(dim1=1, dim2=2).amax(1, keepdim=True)
    largest = largest.where(largest > 0, 1.0)
    # Negative marks part what is rounding from the eigenvalues, and what is nothing from that.
    marks = largest * ((~kept).to(first) + void.to(first))
    values, turns = torch.linalg.eigh(first - torch.diag_embed(marks))
    nothing = int(void[0].sum())  # in all groups
    own = torch.nn.functional.pad(values > -largest / 2, (0, 1))
    values = cut_off(values.clamp_min(0.0), size, 0.0)[0]
    variances = []
    for one in moved:
        found = one(turns)
        found[:, -1] += found[:, :nothing].sum(1)
        variances.append(found[:, nothing:, nothing:])
    turned = turns.mT @ second @ turns
    return Side(
        basis.vectors @ turns[:, :, nothing:],
        values[:, nothing:],
        turned[:, nothing:, nothing:],
        own[:, nothing:],
        (variances[0], variances[1]),
    )


def _in_bases(factor: Eigen, basis: Eigen) -> tuple[Tensor, Moved]:
    """Return a factor of KFAC in a basis whose range holds its own, and how far rounding moves it.

    Averages over positions lie in the range of what they average.
    """
    turn = basis.vectors.mT @ factor.vectors
    beside = [one.vectors.shape[1] - one.vectors.shape[2] for one in (factor, basis)]

    def moved(turns: Tensor) -> Tensor:
        parts = (turns.mT @ turn).square()
        parts = torch.cat([parts, (1 - parts.sum(2, keepdim=True)).clamp_min(0.0)], 2)
        parts = torch.nn.functional.pad(parts, (0, 0, 0, 1))
        parts[:, -1, -1] = 1.0
        each = factor.variances.clone()
        each[:, -1] /= max(1, beside[0])
        found = parts @ each @ parts.mT
        found[:, -1] *= beside[1]
        return found

    return (turn * factor.values[:, None, :-1]) @ turn.mT, moved


def _search(
    layer: Layer, forward: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], count: int
) -> Singular:
    """Return leading singular pairs, looked for on the side with fewer dimensions.

    Starts are random, one more than the pairs, so that none is hidden by another with the same
    singular value.

    Args:
        layer: for its bases.
        forward: R or what is left of it, of matrices of inputs.
        back: its transpose.
        count: of pairs.
    """
    out, inside = (basis.values[:, :-1] for basis in layer.bases)
    swapped = out.shape[1] < inside.shape[1]
    values = out if swapped else inside
    generator, starts = torch.Generator().manual_seed(0), []
    roots = values.sqrt() if values.any() else torch.ones_like(values)
    for _ in range(count + 1):
        shape = (len(roots), roots.shape[1], roots.shape[1])
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(roots)
        starts.append(roots[:, :, None] * (drawn + drawn.mT) * roots[:, None, :])
    if not swapped:
        return leading(forward, back, starts, count)
    found = leading(back, forward, starts, count)
    singular = found.squares.sqrt()[:, :, None, None]
    right = found.left / singular.where(singular > 0, 1.0)
    return replace(found, right=(right + right.mT) / 2, left=found.right * singular)


def _nearest_term(layer: Layer, found: Singular) -> Term:
    """Return the first of some pairs."""
    out, inside = found.left[0], found.right[0]
    own = layer, found.gaps[0], found.residuals[0]
    return Term(out, inside, (_moved(0, out, *own), _moved(1, inside, *own)))


def _left_by(layer: Layer, first: Term, gap: Tensor | None) -> Term:
    """Return the pair nearest to what a term leaves of R.

    Args:
        layer: the rows.
        first: the term.
        gap: by which its changes exceed those of R, where it is a singular pair; where it is not,
            None, what is left moves with it.
    """
    b, a = first.out, first.inside
    found = _search(
        layer,
        lambda x: layer.outer(x) - _dot(a, x) * b,
        lambda y: layer.inner(y) - _dot(b, y) * a,
        1,
    )
    if gap is not None:
        found = replace(found, gaps=torch.maximum(found.gaps, gap))
    size = b.norm(dim=(1, 2)) * a.norm(dim=(1, 2))
    return _second_term(layer, found, 0, size, () if gap is not None else (first,))


def _second_term(
    layer: Layer, found: Singular, index: int, size: Tensor, beside: tuple[Term, ...]
) -> Term:
    """Return a pair as a second term, 0 where it is rounding, or there is one output or one input.

    Args:
        layer: the rows.
        found: pairs.
        index: of the pair.
        size: the singular value of the first term, (groups,).
        beside: a term that moves what is left by its own changes.
    """
    out, inside = found.left[index], found.right[index]
    squares = found.squares[index]
    some = squares.sqrt() > NOTHING * max(out.shape[1], inside.shape[1]) * size
    some &= min(basis.vectors.shape[1] for basis in layer.bases) > 1
    out, inside = (one.where(some[:, None, None], 0.0) for one in (out, inside))
    weights = some / squares.where(some, 1.0)
    own = layer, found.gaps[index], found.residuals[index]
    moved = [
        _moved(0, layer.outer(_absolute(inside)), *own),
        _moved(1, layer.inner(_absolute(out)) * weights[:, None, None], *own),
    ]
    for term in beside:
        gap = found.gaps[index]
        moved = [
            _and_of(moved[0], term.out, term.moved, inside, term.inside, gap, some),
            _and_of(moved[1], term.inside, term.moved[::-1], out, term.out, gap, weights),
        ]
    return Term(out, inside, (moved[0], moved[1]))


def _and_of(
    moved: Moved,
    own: Tensor,
    both: tuple[Moved, ...],
    other: Tensor,
    beside: Tensor,
    gap: Tensor,
    weights: Tensor,
) -> Moved:
    """Return how far a factor moves, with what the first term B (x) A adds: B <A, A2>, say.

    Args:
        moved: without it.
        own: B.
        both: how far B and A move.
        other: A2.
        beside: A.
        gap: what changes are multiplied by, (groups,).
        weights: what the factor is multiplied by, (groups,).
    """
    eye = torch.eye(len(other[0])).to(other).expand_as(other)
    spread = (both[1](eye)[:, :-1, :-1] * other.square()).sum((1, 2))
    along = _dot(beside, other).square()
    scale = (gap * weights).square()[:, None, None]

    def found(turns: Tensor) -> Tensor:
        added = along * both[0](turns)
        added[:, :-1, :-1] += spread[:, None, None] * (turns.mT @ own @ turns).square()
        return moved(turns) + scale * added

    return found


def _moved(side: int, sums: Tensor, layer: Layer, gap: Tensor, residual: Tensor) -> Moved:
    """Return how far rounding moves a factor that is a sum over rows.

    It moves each term by a part rho of itself, of which few may count: an entry by
    rho^2 (mean of t (t_i + t_j) + 4 t_i t_j), t the diagonal of the sum of absolute values.

    Args:
        side: 0 for B, 1 for A.
        sums: the sum of absolute values, in the basis of KFAC's factor.
        layer: the rows.
        gap: what the change is multiplied by, (groups,).
        residual: what a search has left, as a part of the factor.
    """
    size, rank = layer.bases[side].vectors.shape[1:]
    rho = layer.noise.rows.moved / max(layer.noise.rows.squares, 1e-300)

    def found(turns: Tensor) -> Tensor:
        t = (turns * (sums @ turns)).sum(1).clamp_min(0.0)
        t, kept, _ = cut_off(t, size, 0.0)
        mean, largest = t.sum(1)[:, None, None] / size, t.amax(1)[:, None, None]
        one, other = t[:, :, None], t[:, None, :]
        variances = rho * (mean * (one + other) + 4 * one * other)
        some = kept[:, :, None] | kept[:, None, :]
        variances = variances + some * (DECOMPOSED * largest) ** 2 / size
        variances = variances + (residual[:, None, None] * largest) ** 2
        variances[:, -1] *= size - rank
        shift = (rho * mean[:, 0]).square() * torch.ones_like(t)
        return gap[:, None, None] ** 2 * (variances + torch.diag_embed(shift))

    return found


def _absolute(matrix: Tensor) -> Tensor:
    """Return Q |diag(l)| Q^T."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.abs()[:, None, :]) @ vectors.mT


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return <A, B> of each group, (groups, 1, 1)."""
    return (one * other).sum((1, 2), keepdim=True)
