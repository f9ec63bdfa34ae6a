"""Two Kronecker products for a block, by dense decompositions among symmetric matrices."""

from __future__ import annotations

import math
from collections.abc import Callable

import scipy.linalg
import torch
from torch import Tensor


def symmetric_basis(size: int) -> Tensor:
    """Orthonormal symmetric matrices, (size (size + 1) / 2, size^2)."""
    found = []
    for i in range(size):
        for j in range(i + 1):
            one = torch.zeros(size, size, dtype=torch.float64)
            one[i, j] = one[j, i] = 1.0
            found.append((one / one.norm()).flatten())
    return torch.stack(found)


def symmetric_pairs(
    rearranged: Tensor, out: int, inside: int
) -> list[tuple[float, Tensor, Tensor]]:
    """Singular values and pairs sigma u, v among symmetric matrices, falling."""
    left, right = symmetric_basis(out), symmetric_basis(inside)
    u, s, v = torch.linalg.svd(left @ rearranged @ right.T, full_matrices=False)
    return [
        (float(s[i]), (s[i] * u[:, i] @ left).view(out, out), (v[i] @ right).view(inside, inside))
        for i in range(len(s))
    ]


def second(left_over: Tensor, out: int, inside: int, first: float) -> tuple[Tensor, Tensor]:
    """The leading pair of what is left, 0 where it is rounding, or for one output or one input."""
    value, b, a = symmetric_pairs(left_over, out, inside)[0]
    if min(out, inside) == 1 or value <= 1e-13 * first:
        return torch.zeros_like(b), torch.zeros_like(a)
    return b, a


def leading_two(
    rearranged: Tensor, out: int, inside: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two leading pairs, the first positive."""
    pairs = symmetric_pairs(rearranged, out, inside)
    (first, b, a), *others = pairs
    sign = a.trace().sign()
    if not others or others[0][0] <= 1e-13 * first:
        return (sign * b, sign * a), (torch.zeros_like(b), torch.zeros_like(a))
    return (sign * b, sign * a), others[0][1:]


def solver(
    first: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], floor: float = 0.1
) -> Callable[[Tensor, float], Tensor]:
    """Solve with B1 (x) A1 + B2 (x) A2 by generalised eigenproblems."""

    def solve(gradient: Tensor, damping: float) -> Tensor:
        b, a = first
        pi = ((a.trace() / len(a)) / (b.trace() / len(b))).sqrt()
        pi = float(pi) if 0 < pi < math.inf else 1.0
        left = b + math.sqrt(damping) / pi * torch.eye(len(b)).double()
        right = a + math.sqrt(damping) * pi * torch.eye(len(a)).double()
        (db, qb), (da, qa) = (
            map(torch.as_tensor, scipy.linalg.eigh(m.numpy(), n.numpy()))
            for m, n in zip(other, (left, right), strict=True)
        )
        divisor = (1 + torch.outer(db, da)).clamp_min(floor)
        return qb @ ((qb.T @ gradient @ qa) / divisor) @ qa.T

    return solve
