"""Blocks as they are, F_l = sum_kn vec(P_kn) vec(P_kn)^T: by parameters, or by their Gram matrix.

Of two forms with the same result the smaller is solved. With g = sum_kn t_kn P_kn + g' (see
:class:`evalkit.curvature.labels.Cotangents`), R the rows and H = R R^T their Gram matrix,

    (F_l + lambda I)^-1 g = R^T (H + lambda I)^-1 t + (g' - R^T (H + lambda I)^-1 R g') / lambda,

and without damping F_l^+ g = R^T (H^+ t + H^+ H^+ R g'), which loses what of g' is outside of the
range of R^T.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evalkit.curvature.eigen import Eigen, Sums, decomposed
from evalkit.curvature.kronecker import Kronecker, Solution
from evalkit.curvature.noise import noises
from evalkit.curvature.pulled import Block, Names, Pulled
from evalkit.curvature.rotated import Rotated
from evalkit.factor import SMALLEST, GramFactor
from evalkit.factorization import factorize, factorize_rows
from evalkit.linearization import FormedRows
from evalkit.linearization.linearized import MOST_ROW_NUMBERS
from evalkit.rounding import saturated
from evalkit.signs import random_signs

FEW_ROWS = 512
"""Rows whose Gram matrix is decomposed with digits for the smallest of them."""
SHORT = 1e-100
"""Largest entry of cotangents up to which the squares of what they pull back to may underflow."""
FORMED = 1 << 24
"""Numbers in rows that are formed to multiply them: 128 MiB."""


@dataclass(frozen=True, eq=False)
class ParameterBlock:
    """A block as the matrix of its parameters, (size, size) for each group.

    Attributes:
        matrix: 1 (x) F_l.
    """

    matrix: Kronecker

    def rotated(self, gradient: Tensor) -> Rotated:
        """Return a gradient, (groups, out, in) float64, in the basis of the block."""
        return self.matrix.rotated(gradient.flatten(1).unsqueeze(1))

    def solve(self, gradient: Rotated, damping: float) -> Solution:
        """Return (F_l + lambda I)^-1 g, without damping F_l^+ g: (groups, 1, out in).

        Args:
            gradient: g, in the basis.
            damping: lambda.
        """
        return self.matrix.solve(gradient, damping)

    def product(self, x: Tensor) -> Tensor:
        """Return the undamped block applied to matrices, (..., groups, out, in) float64."""
        return self.matrix.product(x.flatten(-2).unsqueeze(-2)).view(x.shape)


@dataclass(frozen=True, eq=False)
class RowBlock:
    """A block by the Gram matrix of its rows.

    Attributes:
        factors: of H, one for each group.
        noise: how far rounding moves each row, (groups, K N).
        hidden: whether a row of each group only counts as zero.
        targets: t, (K N,).
        rest: g', (groups, out, in), None where it is zero.
        slopes: R g', (groups, K N).
        pulled: where the rows R are found again.
        names: the parameters of the block.
    """

    factors: tuple[GramFactor, ...]
    noise: Tensor
    hidden: tuple[bool, ...]
    targets: Tensor
    rest: Tensor | None
    slopes: Tensor
    pulled: Pulled
    names: Names

    def product(self, x: Tensor) -> Tensor:
        """Return R^T R X, the undamped block applied to matrices, (..., groups, out, in)."""
        return self.pulled.across(self.names, self.pulled.along(self.names, x))

    def weights(self, damping: float) -> Tensor:
        """Return w, (groups, K N): the direction is R^T w, and g' / lambda where there is one."""
        found = []
        for factor, slopes in zip(self.factors, self.slopes, strict=True):
            w = factor.solve(self.targets, damping)
            if self.rest is not None:
                inner = factor.solve(slopes, damping)
                w = w - inner / damping if damping else w + factor.solve(inner, 0.0)
            found.append(w)
        return torch.stack(found)

    def solution(self, summed: Tensor, damping: float, unit: float) -> Solution:
        """Return the solution and how far rounding moves it.

        Args:
            summed: R^T w, (groups, out, in).
            damping: lambda.
            unit: the rounding of the evaluation.
        """
        matrix, moved, slope, lost = summed, 0.0, 0.0, 0.0
        if self.rest is not None and damping:
            matrix = matrix + self.rest / damping
        for group, factor in enumerate(self.factors):
            noise, slopes = self.noise[group], self.slopes[group]
            far = factor.movement(self.targets, damping, noise, unit)
            if self.hidden[group] and damping < SMALLEST:  # it asks for its own part of t
                far = math.inf
            weights = factor.solve(self.targets, damping)
            left = self.targets - factor.image(self.targets, damping)
            whole = factor.with_decomposition(noise)
            turned = factor.length(left) * float((weights * whole).norm())
            turned += float((left * whole).norm()) * factor.length(weights)
            if self.rest is not None:
                size = float(self.rest[group].norm())
                part = float(noise.norm()) / max(float(factor.norms.norm()), 1e-300)
                extra = factor.movement(slopes, damping, noise, unit) + part * size
                extra += factor.shift(noise, damping) * size
                outside = self.rest[group].square().sum() - slopes @ factor.solve(slopes, 0.0)
                if damping:
                    extra = extra / damping
                else:
                    lost += max(0.0, float(outside))
                    shifted = factor.solve(slopes, 0.0)
                    extra = factor.movement(shifted, 0.0, noise, unit)
                    extra += factor.shift(noise, 0.0) * factor.length(shifted)
                far += extra
                turned += extra * (size + factor.length(self.targets))
            moved += far**2
            slope += turned**2
        # As in scores: a block has as many directions of its own as the root of its size.
        each = math.sqrt(moved) / matrix[0].numel() ** 0.25
        if not math.isfinite(each):
            return Solution(matrix, moved, slope, lost)
        return Solution(
            matrix,
            moved,
            slope,
            lost,
            lambda generator: random_signs(matrix.shape, generator, matrix) * each,
            float(matrix.square().sum()),
        )


def row_blocks(pulled: Pulled, wanted: Collection[Names]) -> dict[Names, ParameterBlock | RowBlock]:
    """Return the blocks of some layers and parameters as they are."""
    rows = pulled.given.targets.numel()
    small = {names for names in wanted if pulled.blocks[names].size <= rows}
    return _by_parameters(pulled, small) | _by_gram(pulled, set(wanted) - small)


def block(pulled: Pulled) -> dict[Names, ParameterBlock | RowBlock]:
    """Return F_l of each layer."""
    layers = {names for names, one in pulled.blocks.items() if one.example is not None}
    return row_blocks(pulled, layers)


def of_vector(
    pulled: Pulled, blocks: Mapping[Names, RowBlock], vector: Tensor
) -> dict[Names, RowBlock]:
    """Return blocks that solve for any vector, (P,), in place of the gradient."""
    slopes = _slopes(pulled, set(blocks), vector)
    return {
        names: replace(
            one,
            targets=torch.zeros_like(one.targets),
            rest=pulled.blocks[names].matrix(pulled.lin, vector),
            slopes=slopes[names],
        )
        for names, one in blocks.items()
    }


def summed_rows(pulled: Pulled, weights: dict[Names, Tensor]) -> dict[Names, Tensor]:
    """Return R^T w of blocks, (groups, out, in).

    Args:
        pulled: the rows.
        weights: w, (groups, K N), by block.
    """
    shape = pulled.given.targets.shape
    totals = {names: w.new_zeros(pulled.blocks[names].shape) for names, w in weights.items()}
    for part in pulled.parts():
        if part.names not in weights:
            continue
        w = weights[part.names].view(-1, *shape)[:, part.draws, part.found.samples]
        if isinstance(part.found, FormedRows):
            added = torch.einsum("gkn,kns->gs", w, part.found.rows.double())[:, None]
        else:
            d = torch.einsum("gkn,gknto->gnto", w, part.found.output_gradients.double())
            added = d.flatten(1, 2).mT @ part.found.inputs.double().flatten(1, 2)
        totals[part.names] += added
    return totals


def _by_parameters(pulled: Pulled, wanted: set[Names]) -> dict[Names, ParameterBlock]:
    """Return blocks as matrices of their parameters, decomposed."""
    if not wanted:
        return {}
    sums = {names: Sums() for names in wanted}
    for part in pulled.parts():
        if part.names in wanted:
            for _, rows in part.rows():
                groups = rows.shape[2]
                sums[part.names].add(rows.movedim(2, 0).reshape(groups, -1, rows[0, 0, 0].numel()))
    moved, within = noises(pulled), pulled.given.rest is None
    found = {}
    for names, one in sums.items():
        noise = moved[names]
        inside = decomposed(one, noise.rows, 1.0, pulled.lin.unit)
        found[names] = ParameterBlock(
            Kronecker(_one(inside), inside, (True, within), noise.gradient, pulled.lin.unit)
        )
    return found


def _one(beside: Eigen) -> Eigen:
    """Return the factor 1 of each group, which rounding does not move."""
    ones = beside.mean.new_ones(len(beside.mean), 1, 1)
    values = torch.cat([ones[:, 0], torch.zeros_like(ones[:, 0])], 1)
    return Eigen(
        ones, values, values > 0, values == 0, False, ones.new_zeros(len(ones), 2, 2), ones[:, 0, 0]
    )


def _by_gram(pulled: Pulled, wanted: set[Names]) -> dict[Names, RowBlock]:
    """Return blocks by the inner products of their rows."""
    if not wanted:
        return {}
    lin, count = pulled.lin, pulled.given.targets.numel()
    known = {}
    if any(count * _numbers(pulled.blocks[names]) > FORMED for names in wanted):
        known = lin.shared(
            ("gram blocks", pulled.source.key), lambda: lin.gram_blocks(pulled.given.values)
        )
    found = {}
    rest = pulled.rest
    targets = pulled.given.targets.flatten()
    relative = pulled.relative.reshape(-1)
    slopes = _slopes(pulled, wanted, rest)
    short = _short(pulled)
    for names in sorted(wanted):
        own = pulled.blocks[names]
        factors: tuple[GramFactor, ...]
        if names in known and own.shape[0] == 1:
            factors = (_of_gram(known[names], lin.unit, own.size),)
        else:
            factors = tuple(_factor(rows, lin.unit) for rows in pulled.formed(names))
        noise = torch.stack([factor.norms * relative for factor in factors])
        part = None if rest is None else own.matrix(lin, rest)
        hidden = tuple(bool(((factor.norms == 0) & short).any()) for factor in factors)
        found[names] = RowBlock(factors, noise, hidden, targets, part, slopes[names], pulled, names)
    return found


def _short(pulled: Pulled) -> Tensor:
    """Return which cotangents may make rows that count as zero and are not, (K N,)."""
    sizes = torch.linalg.vector_norm(pulled.given.values.flatten(2), math.inf, 2)
    return (((sizes > 0) & (sizes < SHORT)) | saturated(pulled.lin)).flatten()


def _of_gram(gram: Tensor, unit: float, columns: int) -> GramFactor:
    """Return the factor of H; that of many rows by the eigenvalues of H itself, which is faster."""
    if len(gram) <= FEW_ROWS:
        return factorize(gram, unit=unit, columns=columns)
    values, vectors = torch.linalg.eigh(gram)
    rounding = len(gram) * torch.finfo(torch.float64).eps
    kept = values > values[-1] * rounding
    norms = gram.diagonal().clamp_min(0).sqrt()
    complete = int(kept.sum()) >= min(len(gram), columns)
    level = math.sqrt(max(rounding, unit)) * float(norms.max())
    return GramFactor(vectors[:, kept], values[kept], norms, True, level, complete, complete)


def _factor(rows: Tensor, unit: float) -> GramFactor:
    """Return the factor of R R^T: of the rows themselves in small evaluations in float64."""
    if (
        unit < torch.finfo(torch.float64).eps
        and len(rows) <= FEW_ROWS
        and rows.numel() <= MOST_ROW_NUMBERS
    ):
        return factorize_rows(rows)
    return _of_gram(rows @ rows.T, unit, rows.shape[1])


def _slopes(pulled: Pulled, wanted: set[Names], rest: Tensor | None) -> dict[Names, Tensor]:
    """Return R g' of blocks, (groups, K N)."""
    shape = pulled.given.targets.shape
    found = {
        names: pulled.given.targets.new_zeros(pulled.blocks[names].shape[0], *shape)
        for names in wanted
    }
    if rest is not None:
        matrices = {names: pulled.blocks[names].matrix(pulled.lin, rest) for names in wanted}
        for part in pulled.parts():
            if part.names not in wanted:
                continue
            matrix = matrices[part.names]
            if isinstance(part.found, FormedRows):
                along = (part.found.rows.double() @ matrix.flatten())[None]
            else:
                a, d = part.found.inputs.double(), part.found.output_gradients.double()
                along = torch.einsum("gknto,gnto->gkn", d, a @ matrix.mT[:, None])
            found[part.names][:, part.draws, part.found.samples] = along
    return {names: values.flatten(1) for names, values in found.items()}


def _numbers(one: Block) -> int:
    return one.shape[0] * one.size
