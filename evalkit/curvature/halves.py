"""Fisher-orthogonal projection: KFAC's direction with what two halves of the batch differ by.

For each block of a layer, with F the damped block of the whole batch, g1 and g2 the gradients of
the first N // 2 samples and of the others, g = g1 + g2 and D = g1 - g2 (Lu and Armour, 2025):

    g' = D - r g with r = (D^T F g) / (g^T F g), so that g'^T F g = 0,
    d = F^-1 (g + w g') with w = (g^T F^-1 g') / (g'^T F^-1 g'),

which is 2 F^-1 (gavg + beta g') with gavg = g / 2 and w = 2 beta. Step sizes multiply it by
eta = (g^T F^-1 c) / (c^T F^-1 c), c = (g + w g') / 2. Where g' is zero, d is KFAC's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evalkit.curvature.direction import BlockMatrix, Preconditioned, Structure, block_matrix, solved
from evalkit.curvature.kronecker import SEEN, Kronecker, Solution
from evalkit.curvature.labels import Source
from evalkit.curvature.pulled import Names
from evalkit.curvature.rotated import Rotated
from evalkit.linearization import Linearization
from evalkit.settings import Others
from evalkit.signs import random_signs


def fisher_orthogonal(
    lin: Linearization,
    damping: float,
    source: Source,
    key: Hashable,
    structure: Structure,
    step_sizes: bool,
    others: Others = "block",
) -> Preconditioned:
    """Return d; parameters without factors have the direction that they have in the structure.

    Args:
        lin: the model and batch.
        damping: lambda; 0 for pseudo-inverses.
        source: where the cotangents come from.
        key: what tells the structure from others, with its settings.
        structure: makes the blocks of layers, Kronecker products.
        step_sizes: whether every block is multiplied by its eta.
        others: what is made of parameters without factors.

    Raises:
        EvalkitError: no layer of the model has factors.
    """
    plain = block_matrix(lin, source, key, structure, others)
    matrix = _Halves(plain.pulled, plain.key, plain.blocks, step_sizes)
    return solved(matrix, dict(matrix.solutions(damping)), damping)


@dataclass(frozen=True, eq=False)
class _Halves(BlockMatrix):
    """A structure's matrix, whose solutions of the gradient combine those of two halves.

    Attributes:
        step_sizes: whether every block is multiplied by its eta.
    """

    step_sizes: bool

    def solutions(self, damping: float) -> Iterator[tuple[Names, Solution]]:
        """Yield d of each block."""
        lin = self.pulled.lin
        difference = lin.shared("difference of halves", lambda: _difference(lin))
        rotated = lin.shared(("halves", self.key), lambda: self.rotated(difference))
        whole = lin.shared(("rotated", self.key), lambda: self.rotated(lin.gradient))
        for names, solution in super().solutions(damping):
            block, own = self.blocks[names], self.pulled.blocks[names]
            if own.example is None or not isinstance(block, Kronecker):
                yield names, solution
                continue
            halves = _Layer(
                block,
                own.matrix(lin, lin.gradient),
                own.matrix(lin, difference),
                whole[names],
                rotated[names],
            )
            yield names, halves.combined(solution, damping, self.step_sizes)


def _difference(lin: Linearization) -> Tensor:
    """Return g1 - g2, the gradient of the first N // 2 samples without that of the others: (P,)."""
    signs = torch.full_like(lin.losses, -1.0)
    signs[: lin.num_samples // 2] = 1.0
    return lin.vjp(lin.weighted_logit_gradients(signs))


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer's block and what it is applied to, (groups, out, in), as it is and in the bases.

    Attributes:
        block: B (x) A.
        whole: g.
        difference: D.
        rotated: g in the bases.
        apart: D in the bases.
    """

    block: Kronecker
    whole: Tensor
    difference: Tensor
    rotated: Rotated
    apart: Rotated

    def combined(self, plain: Solution, damping: float, step_sizes: bool) -> Solution:
        """Return d, and how far rounding moves it to first order.

        Rounding moves r through g, D and F, w through r and the products that it is made of, and d
        through both and through the two systems.

        Args:
            plain: F^-1 g.
            damping: lambda.
            step_sizes: whether d is multiplied by eta.
        """
        moved_whole = self.block.damped_product(self.rotated, damping)  # F g
        moved_apart = self.block.damped_product(self.apart, damping)  # F D
        squares = self.rotated.dot(moved_whole)
        r = _ratio(self.apart.dot(moved_whole), squares)
        rest = self.apart.plus(self.rotated, -r)  # g'
        noise = self.block.gradient * float(1 + r.square().max())
        far = self.apart.dot(moved_apart) + r.square() * squares
        given = replace(self.block, gradient=noise)
        shrunk = given.trace(damping)
        size = rest.dot(given.damped_product(rest, damping))
        known = size > SEEN**2 * torch.maximum(noise * shrunk, self.block.unit**2 * far)
        known &= self.whole[0].numel() > 1
        hidden = (size > 0) & ~known & (self.whole[0].numel() > 1)
        if hidden.any() and self.block.unit > torch.finfo(torch.float64).eps:
            return replace(plain, moved=math.inf, slope=math.inf, deviation=None)
        solved_rest = given.solve(rest, damping)
        x, y = plain.matrix, solved_rest.matrix
        p = self.difference - r[:, None, None] * self.whole
        along, own = _dot(self.whole, y), _dot(p, y)
        w = _ratio(along, own).where(known, 0.0)
        d = x + w[:, None, None] * y

        # What rounding does: to r, to w, to d and to its slope.
        lengths = moved_whole.dot(moved_whole), moved_apart.dot(moved_apart)
        off = self.block.gradient * (lengths[0] + 2 * lengths[1] + 8 * r.square() * lengths[0])
        off = off + (8 * self.block.unit) ** 2 * self.apart.dot(moved_apart) * squares
        off = _ratio(off, squares.square())
        slope = _dot(self.whole, x)
        crossed = math.sqrt(plain.slope) * math.sqrt(solved_rest.slope)
        turned = _ratio(crossed + w.square() * solved_rest.slope, own.square())
        turned = turned + off * _ratio(2 * w * along - slope, own).square()
        turned = turned.where(known, 0.0)
        most = float(w.square().max())
        total = plain.moved + most * solved_rest.moved
        total += float((turned * _dot(y, y) + w.square() * off * _dot(x, x)).sum())
        leaning = off * (2 * w * (w * along - slope)).square()
        tilted = plain.slope + 4 * most * crossed + most**2 * solved_rest.slope
        tilted += float(leaning.sum())
        eta = torch.ones_like(w)
        if step_sizes:
            slopes, quadratic = slope + w * along, _dot(self.whole + w[:, None, None] * p, d)
            eta = 2 * _ratio(slopes, quadratic)
            part = _ratio(torch.full_like(w, tilted), slopes.square())
            part = part + _ratio(torch.full_like(w, tilted), quadratic.square())
            largest = float(eta.square().max())
            total = largest * total + float((eta.square() * part * _dot(d, d)).sum())
            tilted = largest * tilted + float((eta * slopes).square() @ part)
        if not math.isfinite(total) or plain.deviation is None or solved_rest.deviation is None:
            return Solution(eta[:, None, None] * d, math.inf, math.inf, plain.lost)

        def deviation(generator: torch.Generator) -> Tensor:
            signs = [random_signs(w.shape, generator, w) for _ in range(2)]
            to_w = signs[0] * turned.sqrt()
            to_x = -w * signs[1] * off.sqrt()
            change = plain.change(generator) + w[:, None, None] * solved_rest.change(generator)
            change = change + to_w[:, None, None] * y + to_x[:, None, None] * x
            return eta[:, None, None] * change

        return Solution(eta[:, None, None] * d, total, tilted, plain.lost, deviation)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return inner products of matrices, (groups,)."""
    return (left * right).sum((1, 2))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return above / below, 0 where that is zero."""
    return (above / below.where(below != 0, 1.0)).where(below != 0, 0.0)
