"""The direction of a structure: each block's gradient, preconditioned by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from evalkit.curvature.diagonal import Diagonal
from evalkit.curvature.kronecker import Kronecker, Solution
from evalkit.curvature.labels import Source
from evalkit.curvature.pulled import Names, Pulled, pulled
from evalkit.curvature.rotated import Rotated
from evalkit.curvature.rows import RowBlock, row_blocks, summed_rows
from evalkit.curvature.thin import thin_gradients
from evalkit.errors import EvalkitError
from evalkit.layers.low_rank import LowRank
from evalkit.linearization import ByParameter, Linearization


class BlockSolver(Protocol):
    """A block of a structure, decomposed."""

    def rotated(self, gradient: Any) -> Any:
        """Return what all dampings share of a gradient, (groups, out, in) float64."""

    def solve(self, gradient: Any, damping: float) -> Solution:
        """Return the block's (F_l + lambda I)^-1 G, without damping its pseudo-inverse."""


Blocks = Mapping[Names, BlockSolver | RowBlock]
Structure = Callable[[Pulled], Blocks]
"""Makes the blocks of the layers with factors; those that it leaves out are taken as they are."""


@dataclass(frozen=True, eq=False)
class Preconditioned:
    """A direction, and what is known of it.

    Attributes:
        parts: d, by parameter.
        moved: how far rounding is expected to have moved it.
        slope: how far it has moved d^T g.
        lost: |g| of what a pseudo-inverse maps to zero, as a part of |g|.
        deviation: draws a change of d of the kind that rounding makes; None where d may be
            anything.
    """

    parts: ByParameter
    moved: float
    slope: float
    lost: float
    deviation: Callable[[], ByParameter] | None

    @property
    def vector(self) -> Tensor:
        """d, formed: (P,)."""
        return self.parts.vector()


def preconditioned(
    lin: Linearization, damping: float, source: Source, key: Hashable, structure: Structure
) -> Preconditioned:
    """Return d with blocks d_l = (F_l + lambda I)^-1 g_l; what has no factors keeps its own block.

    Args:
        lin: the model and batch.
        damping: lambda; 0 for pseudo-inverses.
        source: where the cotangents come from.
        key: what tells the structure from others, with its settings.
        structure: makes the blocks of layers.

    Raises:
        EvalkitError: no layer of the model has factors.
    """
    found = pulled(lin, source)
    key = (key, source.key)
    blocks = lin.shared(("blocks", key), lambda: {**structure(found), **_others(found)})
    solutions = dict(_solutions(found, key, blocks, damping))
    lost = math.sqrt(sum(one.lost for one in solutions.values()))
    drawable = all(one.deviation is not None for one in solutions.values())
    return Preconditioned(
        _vector(found, solutions),
        math.sqrt(sum(one.moved for one in solutions.values())),
        math.sqrt(sum(one.slope for one in solutions.values())),
        lost / max(lin.gradient_norm, 1e-300),
        partial(_deviation, found, key, blocks, damping) if drawable else None,
    )


def _solutions(
    found: Pulled, key: Hashable, blocks: Blocks, damping: float
) -> Iterator[tuple[Names, Solution]]:
    """Yield the solution of each block.

    Args:
        found: what the cotangents pull back to.
        key: what tells the blocks from others.
        blocks: decomposed.
        damping: lambda.
    """
    lin = found.lin
    rotated = lin.shared(("rotated", key), lambda: _rotated(found, blocks))
    weights = {n: one.weights(damping) for n, one in blocks.items() if isinstance(one, RowBlock)}
    summed = summed_rows(found, weights) if weights else {}
    for names, block in blocks.items():
        if isinstance(block, RowBlock):
            yield names, block.solution(summed[names], damping, lin.unit)
        else:
            yield names, block.solve(rotated[names], damping)


def _rotated(found: Pulled, blocks: Blocks) -> dict[Names, Any]:
    """Return the gradient in the bases of each block."""
    lin = found.lin
    bases = {
        names: inputs
        for names, one in blocks.items()
        if isinstance(one, Kronecker | Diagonal) and (inputs := one.inputs) is not None
    }
    thin = thin_gradients(lin, bases)
    return {
        names: one.rotated(
            thin[names] if names in thin else found.blocks[names].matrix(lin, lin.gradient)
        )
        for names, one in blocks.items()
        if not isinstance(one, RowBlock)
    }


def _vector(found: Pulled, solutions: Mapping[Names, Solution]) -> ByParameter:
    """Return the direction of solutions, what is thin as it is and all else as it is scored."""
    dtype = found.lin.logits.dtype
    held = {
        names: one.solved if isinstance(one.solved, Rotated) else one.solved.to(dtype)
        for names, one in solutions.items()
    }
    squares = [one.square for one in solutions.values() if one.square is not None]
    return ByParameter(
        lambda: _by_name(
            found,
            (
                (names, one.joined() if isinstance(one, Rotated) else one)
                for names, one in held.items()
            ),
        ),
        dtype,
        math.sqrt(sum(squares)) if len(squares) == len(solutions) else None,
    )


def _by_name(
    found: Pulled, matrices: Iterable[tuple[Names, Tensor | LowRank]]
) -> dict[str, Tensor | LowRank]:
    """Return the matrices of blocks by parameter, in the order of the parameters."""
    parts: dict[str, Tensor | LowRank] = {}
    for names, matrix in matrices:
        parts |= found.blocks[names].tensors(found.lin, matrix)
    return {name: parts[name] for name in found.lin.parameters}


def _deviation(found: Pulled, key: Hashable, blocks: Blocks, damping: float) -> ByParameter:
    """Return a change of the direction of the kind that rounding makes.

    Everything is solved again, so that nothing is held for a change that is seldom asked for.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Iterator[tuple[Names, Tensor | LowRank]]:
        for names, one in _solutions(found, key, blocks, damping):
            assert one.deviation is not None
            yield names, one.deviation(generator)

    changes = _by_name(found, drawn())
    return ByParameter(lambda: changes, found.lin.logits.dtype)


def _others(found: Pulled) -> Mapping[Names, BlockSolver | RowBlock]:
    """Return the blocks of parameters without factors, one for all structures."""
    wanted = {names for names, block in found.blocks.items() if block.example is None}
    if len(wanted) == len(found.blocks):
        raise EvalkitError(
            "expected a layer whose weight is a matrix, in a model whose samples do not influence "
            "each other, for a method by layers, found none; use one on the whole matrix, as ief"
        )
    return found.lin.shared(("others", found.source.key), lambda: row_blocks(found, wanted))
