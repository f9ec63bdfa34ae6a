"""Two levels: the direction of a structure, corrected by one number for each block (Koroko, 2023).

With Z a column for each block of the matrix, those of other parameters and of the groups of a
convolution included, F the exact Fisher matrix and d0 the direction of the structure,

    d = d0 + Z M^+ Z^T (g - (F + lambda I) d0),  M = Z^T (F + lambda I) Z,

so that of all d0 + Z c it is the one that is deepest in the quadratic model. Columns have length
one, which changes nothing but what the pseudo-inverse leaves out: eigenvalues of at most the
largest x 64 x number of columns x eps. M and Z^T F d0 are made of J z and J d0: one JVP for each
column and one for d0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from evalkit.curvature.direction import BlockMatrix, Preconditioned
from evalkit.curvature.kronecker import SEEN
from evalkit.errors import EvalkitError
from evalkit.linearization import Linearization
from evalkit.rounding import fisher_trace, gradient_noise
from evalkit.signs import random_signs

Coarse = Literal["ones", "residual", "direction"]

MOST_NUMBERS = 1 << 27
"""Numbers in J z of all columns, as many times those in the logits: 1 GiB."""
DRAWS = 2
"""Changes of a direction from which it is told how far rounding moves it."""


def two_level(
    matrix: BlockMatrix, fine: Preconditioned, damping: float, coarse: Coarse
) -> Preconditioned:
    """Return d.

    Args:
        matrix: of the structure.
        fine: d0, its direction.
        damping: lambda.
        coarse: what the columns of Z are in each block: ones, the residual g - (F + lambda I) d0,
            or d0 itself.

    Raises:
        EvalkitError: there is one block, or J z of all columns would not fit into memory.
    """
    lin, places = matrix.pulled.lin, _places(matrix)
    numbers = len(places) * lin.logits.numel()
    if numbers > MOST_NUMBERS:
        raise EvalkitError(
            f"expected at most {MOST_NUMBERS:,} numbers in J z of all blocks for method "
            f"'two-level-kfac', found {numbers:,}; score smaller batches, or leave the method out"
        )
    d0, g = fine.vector.double(), lin.gradient.double()
    along = lin.jvp(fine.vector).double()
    if coarse == "residual":
        column = g - lin.fvp(fine.vector).double() - damping * d0
    else:
        column = d0 if coarse == "direction" else torch.ones_like(d0)
    lengths = torch.stack([column[place].norm() for place in places])
    inverse = lengths.reciprocal().where(lengths > 0, 0.0)

    def compute() -> tuple[Tensor, Tensor]:
        moved = _moved(lin, column, places, inverse)
        images = torch.stack([lin.output_fisher(one).flatten() for one in moved])
        inner = images @ moved.flatten(1).T
        for i, one in enumerate(moved):  # exactly 0 where the logits of a sample move alike
            inner[i, i] = lin.likelihood.fisher_quadratic(lin.logits, lin.targets, one).sum()
        return images, (inner + inner.T) / 2

    if coarse == "ones":
        images, inner = lin.shared(("coarse ones", tuple(matrix.blocks)), compute)
    else:
        images, inner = compute()
    level = _Level(lin, places, column, inverse, images, inner, damping, coarse)
    c = level.solve(level.transposed(g - damping * d0) - images @ along.flatten())
    d = d0 + level.expanded(c)
    result = replace(fine, parts=d.to(lin.logits))
    if fine.deviation is None:
        return replace(result, moved=math.inf, slope=math.inf)
    change = partial(level.change, matrix, d0, c, d)
    draws = [change(torch.Generator().manual_seed(1 + i)) for i in range(DRAWS)]
    moved = math.sqrt(sum(float(one.square().sum()) for one in draws) / DRAWS)
    slope = math.sqrt(sum(float(one @ g) ** 2 for one in draws) / DRAWS)
    return replace(
        result,
        moved=moved,
        slope=math.hypot(slope, fine.slope),
        deviation=lambda: change(torch.Generator().manual_seed(0)),
    )


@dataclass(frozen=True, eq=False)
class _Level:
    """The columns of Z, and what F makes of them.

    Attributes:
        lin: the model and batch.
        places: the entries of each block in a vector.
        column: the columns before they have length one, as one vector: (P,).
        inverse: one over their lengths, 0 for columns of zeros.
        images: S J z, a row for each column.
        inner: Z^T F Z.
        damping: lambda.
        coarse: what the columns are; rounding of d0 moves all but ones.
    """

    lin: Linearization
    places: tuple[Tensor, ...]
    column: Tensor
    inverse: Tensor
    images: Tensor
    inner: Tensor
    damping: float
    coarse: Coarse

    def solve(self, right: Tensor, power: float = 1.0) -> Tensor:
        """Return M^+ b, or another negative power of M."""
        own = torch.diag(self.damping * (self.inverse > 0).double())
        values, vectors = torch.linalg.eigh(self.inner + own)
        kept = values > values[-1] * SEEN * len(values) * torch.finfo(torch.float64).eps
        shrunk = values.where(kept, 1.0).pow(-power).where(kept, 0.0)
        return vectors @ (shrunk * (vectors.T @ right))

    def transposed(self, vector: Tensor) -> Tensor:
        """Return Z^T v."""
        products = vector * self.column
        return torch.stack([products[place].sum() for place in self.places]) * self.inverse

    def expanded(self, weights: Tensor, column: Tensor | None = None) -> Tensor:
        """Return Z c, with other columns in place of those before they had length one."""
        column = self.column if column is None else column
        found = torch.zeros_like(column)
        for place, weight in zip(self.places, weights * self.inverse, strict=True):
            found[place] = weight * column[place]
        return found

    def change(
        self, matrix: BlockMatrix, d0: Tensor, c: Tensor, d: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return a change of d of the kind that rounding makes, to its first order.

        Where d0 + Z c moves by e, d moves by e - Z M^+ Z^T (F + lambda I) e, and where Z moves by
        dZ by Z M^+ dZ^T (g - (F + lambda I) d) besides; rounding of g and of products adds to the
        right side.
        """
        lin, damping = self.lin, self.damping
        noise = gradient_noise(lin).norm()
        part = float(noise) / max(float(lin.gradient_norms.norm()), 1e-300)
        change = matrix.change(damping, generator).vector().double()
        right = torch.zeros_like(c)
        moved = change
        if self.coarse != "ones":
            turned = change
            if self.coarse == "residual":
                scattered = random_signs(change.shape, generator, change) / math.sqrt(len(change))
                sizes = noise + part * lin.fvp(d0.to(lin.logits)).double().norm()
                turned = sizes * scattered - lin.fvp(change.to(lin.logits)).double()
                turned = turned - damping * change
            left = lin.gradient.double() - lin.fvp(d.to(lin.logits)).double() - damping * d
            products = turned * left
            right = torch.stack([products[place].sum() for place in self.places]) * self.inverse
            moved = change + self.expanded(c, turned)
        right = right - self.images @ lin.jvp(moved.to(lin.logits)).double().flatten()
        right = right - damping * self.transposed(moved)
        right = right + self.transposed(
            noise * random_signs(moved.shape, generator, moved) / math.sqrt(len(moved))
        )
        spread = math.sqrt(fisher_trace(lin) / math.sqrt(lin.num_params))
        size = part * spread * float(d0.norm() + d.norm())
        found = moved + self.expanded(self.solve(right))
        signs = random_signs(c.shape, generator, c) * size
        return found + self.expanded(self.solve(signs, 0.5))


def _moved(
    lin: Linearization, column: Tensor, places: tuple[Tensor, ...], inverse: Tensor
) -> Tensor:
    """Return J z for each column, float64."""

    def products() -> Iterator[Tensor]:
        for place, one in zip(places, inverse, strict=True):
            z = torch.zeros_like(column)
            z[place] = column[place] * one
            yield lin.jvp(z.to(lin.logits)).double()

    return torch.stack(list(products()))


def _places(matrix: BlockMatrix) -> tuple[Tensor, ...]:
    """Return the entries of each block in a vector, the groups of a convolution apart.

    Raises:
        EvalkitError: there is one block.
    """

    def compute() -> tuple[Tensor, ...]:
        lin, found, start = matrix.pulled.lin, [], 0
        numbers = {}
        for name, value in lin.parameters.items():
            numbers[name] = torch.arange(start, start + value.numel(), device=value.device)
            start += value.numel()
        shaped = {name: one.view(lin.parameters[name].shape) for name, one in numbers.items()}
        for block in matrix.pulled.blocks.values():
            if block.example is None:
                found.append(numbers[block.names[0]])
            else:
                found += [one.flatten() for one in block.example.matrix(shaped)]
        return tuple(found)

    places = matrix.pulled.lin.shared(("places", tuple(matrix.blocks)), compute)
    if len(places) < 2:
        raise one_block()
    return places


def one_block() -> EvalkitError:
    """Return the error of a model whose blocks cannot be scaled against each other."""
    return EvalkitError(
        "expected several layers or other parameters for method 'two-level-kfac', which scales "
        "them against each other, found one; use kfac"
    )
