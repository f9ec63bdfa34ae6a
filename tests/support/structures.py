"""What each structure does to a gradient, formed from a layer's inputs and output gradients.

Every function takes a, (N, T, in), and d, (K, N, T, out), of one group, and returns what solves
with the structure's block.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.two_terms import leading_two, second
from tests.support.two_terms import solver as two_terms

EPS = torch.finfo(torch.float64).eps
DAMPED = ("eva", "deflation", "lanczos", "kfac-corrected")
"""Structures that refuse a damping of 0."""


def unchanged(gradient: Tensor, damping: float) -> Tensor:
    """The gradient, whatever the damping."""
    return gradient


def decomposed(matrix: Tensor, size: int = 0) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors, with zeros for values of at most largest x size x eps.

    Args:
        matrix: symmetric.
        size: of what it was found in, where that is larger than itself.
    """
    values, vectors = torch.linalg.eigh(matrix)
    return values.where(values > values[-1] * max(size, len(values)) * EPS, 0.0), vectors


def solver(matrix: Tensor) -> Callable[[Tensor, float], Tensor]:
    """(M + lambda I)^-1 vec G, the pseudo-inverse without damping."""
    return in_basis(*reversed(decomposed(matrix)))


def full(a: Tensor, d: Tensor) -> Tensor:
    """F_l, (out in, out in)."""
    rows = torch.einsum("knto,nti->knoi", d, a).flatten(0, 1).flatten(1)
    return rows.T @ rows


def kfac_factors(a: Tensor, d: Tensor, sharing: str) -> tuple[Tensor, Tensor]:
    """B and A."""
    if sharing == "reduce":
        a, d = a.mean(1, keepdim=True), d.sum(2, keepdim=True)
    a, d = a.flatten(0, 1), d.flatten(0, 2)
    return d.T @ d, a.T @ a / len(a)


def kronecker(
    b: Tensor, a: Tensor, style: str = "tikhonov", size: int = 0
) -> Callable[[Tensor, float], Tensor]:
    """Solve with B (x) A, found in something of a size."""

    def solve(gradient: Tensor, damping: float) -> Tensor:
        (lb, qb), (la, qa) = decomposed(b, size), decomposed(a, size)
        if damping == 0 or style == "tikhonov":
            return in_basis(torch.kron(qb, qa), torch.kron(lb, la), cut=False)(gradient, damping)
        left = right = torch.tensor(damping, dtype=a.dtype)
        if style == "pi":
            pi = ((a.trace() / len(a)) / (b.trace() / len(b))).sqrt()
            pi = pi if 0 < pi < math.inf else torch.ones_like(pi)
            left, right = math.sqrt(damping) / pi, math.sqrt(damping) * pi
        rotated = cleaned(qb.T @ gradient @ qa, lb[:, None] * la > 0)
        return qb @ (rotated / torch.outer(lb + left, la + right)) @ qa.T

    return solve


def cleaned(values: Tensor, known: Tensor) -> Tensor:
    """Entries with those zero where nothing but rounding is: lines without anything known."""
    values = values.clone()
    for axis in (0, 1):
        lines = ~known.any(axis)
        part = values[:, lines] if axis == 0 else values[lines]
        if part.norm() <= 1e-9 * values.norm():
            part.zero_()
            if axis == 0:
                values[:, lines] = 0.0
            else:
                values[lines] = 0.0
    return values


def kfac(a: Tensor, d: Tensor, sharing: str = "expand", style: str = "tikhonov"):
    return kronecker(*kfac_factors(a, d, sharing), style)


def ekfac(a: Tensor, d: Tensor) -> Callable[[Tensor, float], Tensor]:
    """Solve with (Qb (x) Qa) diag(s) (Qb (x) Qa)^T, whose smallest s a formed matrix would lose."""
    b_, a_ = kfac_factors(a, d, "expand")
    basis = torch.kron(torch.linalg.eigh(b_)[1], torch.linalg.eigh(a_)[1])
    rows = torch.einsum("knto,nti->knoi", d, a).flatten(0, 1).flatten(1)
    return in_basis(basis, (rows @ basis).square().sum(0))


def in_basis(basis: Tensor, s: Tensor, cut: bool = True) -> Callable[[Tensor, float], Tensor]:
    """Solve with Q diag(s) Q^T.

    Args:
        basis: Q.
        s: not negative.
        cut: False where s has been cut off already.
    """

    def solve(gradient: Tensor, damping: float) -> Tensor:
        rotated = basis.T @ gradient.flatten()
        outside = s <= (s.max() * len(s) * EPS if cut else 0.0)
        # What lies there by so little is rounding, which a damping near zero would blow up.
        if damping == 0 or rotated[outside].norm() <= 1e-9 * rotated.norm():
            rotated[outside] = 0.0
        kept = rotated != 0
        rotated[kept] /= s[kept] + damping
        return (basis @ rotated).view(gradient.shape)

    return solve


def kpsvd(a: Tensor, d: Tensor, style: str = "tikhonov") -> Callable[[Tensor, float], Tensor]:
    """Solve with the nearest B (x) A, by the SVD of the rearranged block."""
    out, inside = d.shape[-1], a.shape[-1]
    # What an SVD of the whole leaves in a small factor is that of the larger one.
    return kronecker(*nearest(full(a, d), out, inside), style, max(out, inside))


def rearranged(matrix: Tensor, out: int, inside: int) -> Tensor:
    """R, (out^2, in^2), with |F - B (x) A| = |R - vec B vec A^T|."""
    return matrix.reshape(out, inside, out, inside).transpose(1, 2).reshape(out**2, inside**2)


def nearest(matrix: Tensor, out: int, inside: int) -> tuple[Tensor, Tensor]:
    """B and A."""
    u, s, v = torch.linalg.svd(rearranged(matrix, out, inside), full_matrices=False)
    b, a = s[0] * u[:, 0].view(out, out), v[0].view(inside, inside)
    sign = a.trace().sign()
    return sign * (b + b.T) / 2, sign * (a + a.T) / 2


def shampoo(
    a: Tensor, d: Tensor, exponent: float = 1.0, style: str = "tikhonov"
) -> Callable[[Tensor, float], Tensor]:
    """Solve with L (x) R / tr L, or L^e (x) R^e."""
    rows = torch.einsum("knto,nti->knoi", d, a).flatten(0, 1)
    left, right = (rows @ rows.mT).sum(0), (rows.mT @ rows).sum(0)
    if exponent == 1:
        return kronecker(left / left.trace().clamp_min(1e-300), right, style)
    return kronecker(*(power(m, exponent) for m in (left, right)), style)


def power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = decomposed(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def eva(a: Tensor, d: Tensor) -> Callable[[Tensor, float], Tensor]:
    """Solve with N (dbar dbar^T) (x) (abar abar^T)."""
    inside = a.mean((0, 1))
    out = d.sum((1, 2)) / len(a)
    return kronecker(len(a) * out.T @ out, torch.outer(inside, inside))


def deflation(a: Tensor, d: Tensor, floor: float = 0.1) -> Callable[[Tensor, float], Tensor]:
    """Solve with the nearest B (x) A and the nearest to what it leaves."""
    return corrected(a, d, nearest(full(a, d), d.shape[-1], a.shape[-1]), floor)


def lanczos(a: Tensor, d: Tensor, floor: float = 0.1) -> Callable[[Tensor, float], Tensor]:
    """Solve with both leading pairs."""
    sizes = d.shape[-1], a.shape[-1]
    both = leading_two(rearranged(full(a, d), *sizes), *sizes)
    return in_ranges(a, d, two_terms(*both, floor))


def corrected(a: Tensor, d: Tensor, first: tuple[Tensor, Tensor], floor: float):
    """Solve with B (x) A and the nearest to what it leaves."""
    sizes = d.shape[-1], a.shape[-1]
    product = torch.outer(*(one.flatten() for one in first))
    left = rearranged(full(a, d), *sizes) - product
    both = first, second(left, *sizes, float(product.norm()))
    return in_ranges(a, d, two_terms(*both, floor))


def in_ranges(
    a: Tensor, d: Tensor, solve: Callable[[Tensor, float], Tensor]
) -> Callable[[Tensor, float], Tensor]:
    """Solve without what of the gradient is rounding beside the ranges of KFAC's factors."""
    (lb, qb), (la, qa) = (decomposed(one) for one in kfac_factors(a, d, "expand"))

    def solve_in_ranges(gradient: Tensor, damping: float) -> Tensor:
        rotated = cleaned(qb.T @ gradient @ qa, lb[:, None] * la > 0)
        return solve(qb @ rotated @ qa.T, damping)

    return solve_in_ranges


def kfac_corrected(a: Tensor, d: Tensor, sharing: str = "expand", floor: float = 0.1):
    return corrected(a, d, kfac_factors(a, d, sharing), floor)


STRUCTURES: dict[str, Callable[..., Callable[[Tensor, float], Tensor]]] = {
    "block": lambda a, d: solver(full(a, d)),
    "kfac": kfac,
    "ekfac": ekfac,
    "kpsvd": kpsvd,
    "shampoo": shampoo,
    "eva": eva,
    "deflation": deflation,
    "lanczos": lanczos,
    "kfac-corrected": kfac_corrected,
    "diagonal": lambda a, d: in_basis(torch.eye(len(full(a, d))).double(), full(a, d).diagonal()),
}
