"""The matrix of a structure, block by block, and its direction: the gradient preconditioned."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from evalkit.curvature.diagonal import Diagonal
from evalkit.curvature.kronecker import Kronecker, Solution
from evalkit.curvature.labels import Source
from evalkit.curvature.noise import noises
from evalkit.curvature.others import Unchanged, check_left, no_layers
from evalkit.curvature.pulled import Names, Pulled, pulled
from evalkit.curvature.rotated import Rotated
from evalkit.curvature.rows import ParameterBlock, RowBlock, of_vector, row_blocks, summed_rows
from evalkit.curvature.thin import thin_gradients
from evalkit.curvature.two_terms import TwoTerms
from evalkit.errors import EvalkitError
from evalkit.evaluation.failures import out_of_range
from evalkit.layers.low_rank import LowRank
from evalkit.linearization import ByParameter, Linearization
from evalkit.rounding import overflows
from evalkit.settings import Others

MOST_LENGTHS = 1 << 17
"""Lengths of the parts of a direction that are kept for the other dampings of a sweep: 1 MiB."""


class BlockSolver(Protocol):
    """A block of a structure, decomposed."""

    def rotated(self, gradient: Any) -> Any:
        """Return what all dampings share of a gradient, (groups, out, in) float64."""

    def solve(self, gradient: Any, damping: float) -> Solution:
        """Return the block's (F_l + lambda I)^-1 G, without damping its pseudo-inverse."""


@runtime_checkable
class MatrixBlock(BlockSolver, Protocol):
    """A block that is a matrix, and can be compared with others."""

    def product(self, x: Tensor) -> Tensor:
        """Return the undamped block applied to matrices, (..., groups, out, in) float64."""


Blocks = Mapping[Names, BlockSolver | RowBlock]
Structure = Callable[[Pulled], Blocks]
"""Makes the blocks of the layers with factors; the rest may be left to :func:`block_matrix`."""


@dataclass(frozen=True, eq=False)
class BlockMatrix:
    """The matrix of a structure on one batch, its blocks decomposed: solves for any vector.

    Attributes:
        pulled: the blocks' parameters and forms, and the rows that they are made of.
        key: what tells the blocks from others.
        blocks: decomposed.
    """

    pulled: Pulled
    key: Hashable
    blocks: Blocks

    def solutions(self, damping: float) -> Iterator[tuple[Names, Solution]]:
        """Yield (F_l + lambda I)^-1 g_l of each block for the gradient, 0 for pseudo-inverses."""
        lin = self.pulled.lin
        rotated = lin.shared(("rotated", self.key), self._rotated_gradient)
        yield from self._solved(self.blocks, rotated, damping)

    def solve(self, vector: Tensor, damping: float) -> Tensor:
        """Return (F + lambda I)^-1 v of any vector v, (P,)."""
        found = self.pulled
        rows = {n: one for n, one in self.blocks.items() if isinstance(one, RowBlock)}
        blocks = {names: _anywhere(one) for names, one in self.blocks.items()}
        other = replace(self, blocks=blocks | of_vector(found, rows, vector))
        solutions = other._solved(other.blocks, other.rotated(vector), damping)
        return self.joined({names: one.matrix for names, one in solutions})

    def rotated(
        self, vector: Tensor, thin: Mapping[Names, LowRank] | None = None
    ) -> dict[Names, Any]:
        """Return a vector in the bases of the blocks that have one.

        Args:
            vector: (P,).
            thin: parts of it, of some blocks, that are known as products and need not be formed.
        """
        found, thin = self.pulled, thin or {}
        return {
            names: one.rotated(
                thin[names] if names in thin else found.blocks[names].matrix(found.lin, vector)
            )
            for names, one in self.blocks.items()
            if not isinstance(one, RowBlock)
        }

    def _rotated_gradient(self) -> dict[Names, Any]:
        """Return the gradient in the bases of the blocks; that of thin layers is not formed."""
        bases = {
            names: inputs
            for names, one in self.blocks.items()
            if isinstance(one, Kronecker | Diagonal) and (inputs := one.inputs) is not None
        }
        lin = self.pulled.lin
        return self.rotated(lin.gradient, thin_gradients(lin, bases))

    def joined(self, matrices: Mapping[Names, Tensor]) -> Tensor:
        """Return the matrices of all blocks, (groups, out, in), as a vector: (P,)."""
        dtype = self.pulled.lin.logits.dtype
        parts = self.by_name(matrices.items())
        return ByParameter(lambda: parts, dtype).vector()

    def by_name(
        self, matrices: Iterable[tuple[Names, Tensor | LowRank]]
    ) -> dict[str, Tensor | LowRank]:
        """Return the matrices of all blocks by parameter, in the order of the parameters."""
        lin, parts = self.pulled.lin, dict[str, Tensor | LowRank]()
        for names, matrix in matrices:
            parts |= self.pulled.blocks[names].tensors(lin, matrix)
        return {name: parts[name] for name in lin.parameters}

    def change(self, damping: float, generator: torch.Generator) -> ByParameter:
        """Return a change of the gradient's solutions of the kind that rounding makes.

        Everything is solved again, so that nothing is held for a change that is seldom asked for.
        """

        def drawn() -> Iterator[tuple[Names, Tensor | LowRank]]:
            for names, one in self.solutions(damping):
                assert one.deviation is not None
                yield names, one.deviation(generator)

        changes = self.by_name(drawn())
        return ByParameter(lambda: changes, self.pulled.lin.logits.dtype)

    def _solved(
        self, blocks: Blocks, rotated: Mapping[Names, Any], damping: float
    ) -> Iterator[tuple[Names, Solution]]:
        found = self.pulled
        rows = {n: one for n, one in blocks.items() if isinstance(one, RowBlock)}
        weights = {names: one.weights(damping) for names, one in rows.items()}
        summed = summed_rows(found, weights) if weights else {}
        for names, block in blocks.items():
            if isinstance(block, RowBlock):
                yield names, block.solution(summed[names], damping, found.lin.unit)
            else:
                yield names, block.solve(rotated[names], damping)


@dataclass(frozen=True, eq=False)
class Preconditioned:
    """A direction, and what is known of it.

    Attributes:
        parts: d, (P,) or by parameter.
        moved: how far rounding is expected to have moved it.
        slope: how far it has moved d^T g.
        lost: |g| of what a pseudo-inverse maps to zero, as a part of |g|.
        deviation: draws a change of d of the kind that rounding makes; None where d may be
            anything.
        matrix: that was solved with, undamped.
        floored: for each block, by its parameters, the part of its directions along which the floor
            of a two-term method takes the place of what its matrix has there.
        lengths: of the parts of d, orthogonal to each other, whose directions are the same at every
            damping: (M,). None where d is not made that way, or where they are many.
    """

    parts: Tensor | ByParameter
    moved: float
    slope: float
    lost: float
    deviation: Callable[[], Tensor | ByParameter] | None
    matrix: BlockMatrix
    floored: Mapping[Names, float] = field(default_factory=dict)
    lengths: Tensor | None = None

    @property
    def vector(self) -> Tensor:
        """d, formed: (P,)."""
        return self.parts if isinstance(self.parts, Tensor) else self.parts.vector()


def block_matrix(
    lin: Linearization,
    source: Source,
    key: Hashable,
    structure: Structure,
    others: Others = "block",
) -> BlockMatrix:
    """Return the matrix of a structure; what it makes no block of keeps its own block.

    Args:
        lin: the model and batch.
        source: where the cotangents come from.
        key: what tells the structure from others, with its settings.
        structure: makes the blocks of layers.
        others: what is made of parameters without factors.

    Raises:
        EvalkitError: no layer of the model has factors, or there are parameters without although
            they are to be left.
    """
    found = pulled(lin, source)
    key = (key, source.key, others)

    def compute() -> Blocks:
        layers = _layers(found)
        made = structure(found)
        if others == "block" and made.keys() >= found.blocks.keys():
            return made
        return {**made, **_others(found, layers, others)}

    return BlockMatrix(found, key, lin.shared(("blocks", key), compute))


def preconditioned(
    lin: Linearization,
    damping: float,
    source: Source,
    key: Hashable,
    structure: Structure,
    others: Others = "block",
) -> Preconditioned:
    """Return d with blocks d_l = (F_l + lambda I)^-1 g_l.

    Args:
        lin: the model and batch.
        damping: lambda; 0 for pseudo-inverses.
        source: as in :func:`block_matrix`, and so are the others.
        key: of the structure.
        structure: makes the blocks of layers.
        others: what is made of parameters without factors.

    Raises:
        EvalkitError: as :func:`block_matrix`.
    """
    matrix = block_matrix(lin, source, key, structure, others)
    return solved(matrix, dict(matrix.solutions(damping)), damping)


def solved(
    matrix: BlockMatrix, solutions: Mapping[Names, Solution], damping: float
) -> Preconditioned:
    """Return the direction of the gradient's solutions, and what is known of it.

    Args:
        matrix: what was solved with.
        solutions: of all blocks.
        damping: lambda.
    """
    lost = math.sqrt(sum(one.lost for one in solutions.values()))
    drawable = all(one.deviation is not None for one in solutions.values())
    return Preconditioned(
        _kept(matrix, solutions),
        math.sqrt(sum(one.moved for one in solutions.values())),
        math.sqrt(sum(one.slope for one in solutions.values())),
        lost / max(matrix.pulled.lin.gradient_norm, 1e-300),
        partial(_deviation, matrix, damping) if drawable else None,
        matrix,
        {names: one.floored for names, one in solutions.items()},
        _lengths(solutions.values()),
    )


def _anywhere(block: BlockSolver | RowBlock) -> BlockSolver | RowBlock:
    """Return a block that takes nothing for granted about where a vector lies."""
    if isinstance(block, ParameterBlock):
        return replace(block, matrix=replace(block.matrix, within=(False, False)))
    if isinstance(block, Kronecker | Diagonal | TwoTerms):
        return replace(block, within=(False, False))
    return block


def _lengths(solutions: Iterable[Solution]) -> Tensor | None:
    found = [one.lengths for one in solutions]
    known = [one.flatten() for one in found if one is not None]
    if len(known) < len(found) or sum(map(len, known)) > MOST_LENGTHS:
        return None
    return torch.cat(known)


def _kept(matrix: BlockMatrix, solutions: Mapping[Names, Solution]) -> ByParameter:
    """Return the direction of solutions, what is thin as it is and all else as it is scored."""
    dtype = matrix.pulled.lin.logits.dtype
    held = {
        names: one.solved if isinstance(one.solved, Rotated) else one.solved.to(dtype)
        for names, one in solutions.items()
    }
    squares = [one.square for one in solutions.values() if one.square is not None]
    return ByParameter(
        lambda: matrix.by_name(
            (names, one.joined() if isinstance(one, Rotated) else one)
            for names, one in held.items()
        ),
        dtype,
        math.sqrt(sum(squares)) if len(squares) == len(solutions) else None,
    )


def _deviation(matrix: BlockMatrix, damping: float) -> ByParameter:
    return matrix.change(damping, torch.Generator().manual_seed(0))


def _layers(found: Pulled) -> set[Names]:
    """Return the blocks with factors.

    Raises:
        EvalkitError: there are none.
    """
    layers = {names for names, block in found.blocks.items() if block.example is not None}
    if not layers and overflows(found.lin):  # no sums of rows agree with anything then
        raise EvalkitError(out_of_range("products of rows that are not finite"))
    if not layers:
        raise no_layers()
    return layers


def _others(
    found: Pulled, layers: set[Names], others: Others
) -> Mapping[Names, BlockSolver | RowBlock]:
    """Return the blocks of parameters without factors, one for all structures."""
    wanted = found.blocks.keys() - layers
    if others == "leave":
        check_left(found.lin)
    if others == "gradient":
        moved = noises(found)
        return {names: Unchanged(moved[names].gradient) for names in wanted}
    return found.lin.shared(("others", found.source.key), lambda: row_blocks(found, wanted))
