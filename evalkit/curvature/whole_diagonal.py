"""The diagonal of the whole Fisher matrix, parameters without factors included."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from evalkit.curvature.diagonal import Diagonal, diagonal
from evalkit.curvature.direction import BlockMatrix
from evalkit.curvature.labels import Source
from evalkit.curvature.noise import noises
from evalkit.curvature.pulled import Names, Pulled, pulled
from evalkit.linearization import FormedRows, Linearization


def whole_diagonal(lin: Linearization, source: Source) -> BlockMatrix:
    """Return diag(F) with F = sum_kn J_n^T c_kn c_kn^T J_n: the squares of all rows, summed.

    A model needs no layer with factors for it.

    Args:
        lin: the model and batch.
        source: where the cotangents come from.
    """
    found = pulled(lin, source)
    key = ("whole diagonal", source.key)
    return BlockMatrix(found, key, lin.shared(("blocks", key), lambda: _blocks(found)))


def diagonals(matrix: BlockMatrix) -> dict[Names, Diagonal]:
    """Return the blocks of such a matrix."""
    return {names: one for names, one in matrix.blocks.items() if isinstance(one, Diagonal)}


def entries(matrix: BlockMatrix, values: Mapping[Names, Tensor]) -> Tensor:
    """Return values of blocks, each (groups, out, in) float64, as a float64 vector: (P,)."""
    parts = matrix.by_name(values.items())
    formed = (one if isinstance(one, Tensor) else one.formed() for one in parts.values())
    return torch.cat([one.flatten() for one in formed])


def _blocks(found: Pulled) -> dict[Names, Diagonal]:
    blocks, moved = diagonal(found), noises(found)
    squares = {
        names: found.given.targets.new_zeros(own.shape)
        for names, own in found.blocks.items()
        if names not in blocks
    }
    for part in found.parts():
        if isinstance(part.found, FormedRows):
            squares[part.names] += part.found.rows.double().square().sum((0, 1))
    within = (found.given.rest is None, True)
    others = {
        names: Diagonal(s, None, within, moved[names], found.lin.unit, s.numel(), ())
        for names, s in squares.items()
    }
    return blocks | others
