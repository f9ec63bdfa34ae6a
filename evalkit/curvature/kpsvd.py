"""The nearest Kronecker product to each block, and Shampoo's: both from second moments of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evalkit.curvature.eigen import Eigen, cut_off, void
from evalkit.curvature.kfac import gradient_factors, input_factors
from evalkit.curvature.kronecker import Kronecker, Style
from evalkit.curvature.noise import Noise, noises
from evalkit.curvature.pulled import PART, Names, Pulled
from evalkit.curvature.singular import RESIDUAL, Singular, leading
from evalkit.factor import DECOMPOSED
from evalkit.linearization import LayerFactors


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer's rows P = Qb P' Qa^T in the bases of KFAC's factors, which are often few.

    Attributes:
        bases: the factors B and A of KFAC (expand), whose ranges hold those of all rows.
        parts: a' and d', (groups, n, T, in rank) and (groups, K, n, T, out rank).
        noise: what rounding moves.
    """

    bases: tuple[Eigen, Eigen]
    parts: tuple[tuple[Tensor, Tensor], ...]
    noise: Noise

    def outer(self, x: Tensor) -> Tensor:
        """Return sum_kn P' X P'^T, (groups, out rank, out rank), for X, (groups, in, in)."""
        total: Tensor | float = 0.0
        for a, d in self._pieces():
            inner = torch.einsum("gnti,gij,gnsj->gnts", a, x, a)
            total = total + torch.einsum("gknto,gnts,gknsp->gop", d, inner, d)
        assert isinstance(total, Tensor)
        return total

    def inner(self, y: Tensor) -> Tensor:
        """Return sum_kn P'^T Y P', (groups, in rank, in rank), for Y, (groups, out, out)."""
        total: Tensor | float = 0.0
        for a, d in self._pieces():
            outer = torch.einsum("gknto,gop,gknsp->gnts", d, y, d)
            total = total + torch.einsum("gnti,gnts,gnsj->gij", a, outer, a)
        assert isinstance(total, Tensor)
        return total

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        for a, d in self.parts:
            one = d.shape[0] * d.shape[1] * d.shape[3] * max(d.shape[3], d.shape[4], a.shape[3])
            step = max(1, PART // max(1, one))
            for i in range(0, a.shape[1], step):
                yield a[:, i : i + step], d[:, :, i : i + step]


def layers(pulled: Pulled) -> dict[Names, Layer]:
    """Return the rows of each layer in the bases of KFAC's factors."""

    def compute() -> dict[Names, Layer]:
        inside, out = input_factors(pulled, "expand"), gradient_factors(pulled, "expand")
        parts: dict[Names, list[tuple[Tensor, Tensor]]] = {names: [] for names in out}
        for part in pulled.parts():
            if isinstance(part.found, LayerFactors):
                a = part.found.inputs.double() @ inside[part.names].vectors[:, None]
                d = part.found.output_gradients.double() @ out[part.names].vectors[:, None, None]
                parts[part.names].append((a, d))
        moved = noises(pulled)
        return {
            names: Layer((out[names], inside[names]), tuple(found), moved[names])
            for names, found in parts.items()
        }

    return pulled.lin.shared(("rows in bases", pulled.source.key), compute)


def kpsvd(pulled: Pulled, style: Style = "tikhonov") -> dict[Names, Kronecker]:
    """Return the B (x) A nearest to each F_l in the Frobenius norm (Koroko et al., 2022).

    With F_l rearranged to R, (out^2, in^2), such that |F_l - B (x) A| = |R - vec B vec A^T|, they
    are its leading singular pair. R maps positive semi-definite matrices to such, and so are they.
    """
    lin = pulled.lin

    def compute() -> dict[Names, tuple[Eigen, Eigen]]:
        found, made = nearest(pulled), {}
        for names, layer in layers(pulled).items():
            one = found[names]
            moved = one.gaps[0], lin.unit, one.residuals[0]
            made[names] = (
                _factor(one.left[0], layer.bases[0], layer.noise, *moved),
                _factor(one.right[0], layer.bases[1], layer.noise, *moved),
            )
        return made

    return _blocks(pulled, lin.shared(("kpsvd", pulled.source.key), compute), style)


def nearest(pulled: Pulled) -> dict[Names, Singular]:
    """Return the leading singular pair of R of each layer, in the bases of KFAC's factors.

    Both matrices are positive semi-definite.
    """
    return pulled.lin.shared(
        ("nearest products", pulled.source.key),
        lambda: {names: _nearest(one) for names, one in layers(pulled).items()},
    )


def _nearest(layer: Layer) -> Singular:
    start = torch.diag_embed(layer.bases[1].values[:, :-1])
    if not start.any():
        start = torch.diag_embed(torch.ones_like(layer.bases[1].values[:, :-1]))
    return positive(leading(layer.outer, layer.inner, [start]))


def positive(found: Singular) -> Singular:
    """Return singular pairs with the signs that give the right matrices positive traces."""
    signs = found.right.diagonal(dim1=2, dim2=3).sum(2).sign()[:, :, None, None]
    signs = signs.where(signs != 0, 1.0)
    return replace(found, right=found.right * signs, left=found.left * signs)


def shampoo(
    pulled: Pulled, exponent: float = 1.0, style: Style = "tikhonov"
) -> dict[Names, Kronecker]:
    """Return L (x) R / tr L of each layer, or L^e (x) R^e, L = sum P P^T and R = sum P^T P."""
    lin = pulled.lin

    def compute() -> dict[Names, tuple[Eigen, Eigen]]:
        found = {}
        for names, layer in layers(pulled).items():
            sizes = [len(basis.vectors[0, 0]) for basis in layer.bases]
            eyes = [
                layer.bases[0].values.new_tensor(1.0) * torch.eye(n).to(layer.bases[0].values)
                for n in sizes
            ]
            groups = len(layer.bases[0].values)
            left = layer.outer(eyes[1].expand(groups, -1, -1))
            right = layer.inner(eyes[0].expand(groups, -1, -1))
            none = left.new_ones(groups)
            found[names] = (
                _factor(left, layer.bases[0], layer.noise, none, lin.unit),
                _factor(right, layer.bases[1], layer.noise, none, lin.unit),
            )
        return found

    pairs = lin.shared(("shampoo", pulled.source.key), compute)
    powers = {}
    for names, (left, right) in pairs.items():
        if exponent == 1.0:
            trace = left.values.sum(1)
            scale = trace.reciprocal().where(trace > 0, 1.0)
            powers[names] = (_scaled(left, scale), right)
        else:
            powers[names] = (_power(left, exponent), _power(right, exponent))
    return _blocks(pulled, powers, style)


def _blocks(
    pulled: Pulled, pairs: dict[Names, tuple[Eigen, Eigen]], style: Style
) -> dict[Names, Kronecker]:
    moved, spanned, unit = noises(pulled), pulled.given.rest is None, pulled.lin.unit
    return {
        names: Kronecker(out, inside, (spanned, spanned), moved[names].gradient, unit, style)
        for names, (out, inside) in pairs.items()
    }


def _factor(
    matrix: Tensor,
    basis: Eigen,
    noise: Noise,
    gap: Tensor,
    unit: float,
    residual: Tensor | float = RESIDUAL,
) -> Eigen:
    """Return a factor Q M Q^T decomposed.

    Rounding moves its terms, of which few may count, by a part rho of each:
    rho^2 (mean of l (l_i + l_j) + 4 l_i l_j) in an entry, and in a leading pair by as much more as
    it stands out less.

    Args:
        matrix: M, (groups, rank, rank).
        basis: with the vectors Q.
        noise: of the layer.
        gap: what the change is multiplied by, (groups,).
        unit: the rounding of the evaluation.
        residual: what a search for the factor has left, as a part of it, (groups,).
    """
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    vectors = basis.vectors @ vectors
    size = vectors.shape[1]
    values, kept, hazy = cut_off(values, size, unit)
    mean = values.sum(1) / size
    rho = noise.rows.moved / max(noise.rows.squares, 1e-300)
    pairs = values[:, :, None] + values[:, None, :]
    variances = rho * (mean[:, None, None] * pairs + 4 * values[:, :, None] * values[:, None, :])
    some = kept[:, :, None] | kept[:, None, :]
    largest = values.amax(1)[:, None, None]
    left = torch.as_tensor(residual).to(largest).view(-1, 1, 1) * largest
    rounded = torch.hypot(some * DECOMPOSED * largest / size**0.5, left)
    variances = gap[:, None, None] ** 2 * (variances + rounded**2)
    variances[:, -1] *= size - vectors.shape[2]
    shift = ((gap * rho * mean) ** 2)[:, None] * torch.ones_like(values)
    empty = void(values, int(basis.void[0, :-1].sum()))
    variances = variances + torch.diag_embed(shift)
    return Eigen(vectors, values, kept, empty, hazy, variances, mean)


def _scaled(one: Eigen, scale: Tensor) -> Eigen:
    """Return a factor times a number for each group."""
    return replace(
        one,
        values=one.values * scale[:, None],
        variances=one.variances * scale[:, None, None] ** 2,
        mean=one.mean * scale,
    )


def _power(one: Eigen, exponent: float) -> Eigen:
    """Return a factor to a power; entries move by divided differences of the power."""
    values = one.values**exponent
    pairs = one.values[:, :, None] - one.values[:, None, :]
    slopes = (values[:, :, None] - values[:, None, :]) / pairs.where(pairs != 0, 1.0)
    equal = exponent * one.values.where(one.kept, 1.0) ** (exponent - 1)
    slopes = slopes.where(pairs != 0, equal[:, :, None])
    variances = one.variances * slopes.square()
    neither = ~(one.kept[:, :, None] | one.kept[:, None, :])
    variances = variances.where(~neither, one.variances**exponent)
    size = one.vectors.shape[1]
    return replace(one, values=values, variances=variances, mean=values.sum(1) / size)
