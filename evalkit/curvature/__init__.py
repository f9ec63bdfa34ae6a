"""Structured approximations of the Fisher matrix, layer by layer.

From the ground up: ``labels`` says where cotangents come from, ``pulled`` what they pull back to,
``noise`` how far rounding moves it; ``eigen`` and ``rotated`` are second moments decomposed and
matrices in their bases; ``kronecker`` solves with B (x) A, ``rows`` with blocks as they
are, ``two_terms`` with a sum of two products; ``singular`` finds leading singular pairs; and
``kfac``, ``diagonal``, ``kpsvd``, ``second_term`` and ``eva`` make a structure's blocks of a pull;
``direction`` puts the blocks together. ``coarse`` and ``halves`` combine solutions of KFAC's
blocks, ``whitening`` has no blocks to solve with; ``whole_diagonal``, ``past`` and ``projection``
are a diagonal natural gradient beside past tasks.
"""

from evalkit.curvature.coarse import Coarse, two_level
from evalkit.curvature.diagonal import diagonal, ekfac
from evalkit.curvature.direction import (
    BlockMatrix,
    MatrixBlock,
    Preconditioned,
    block_matrix,
    preconditioned,
    solved,
)
from evalkit.curvature.eva import eva
from evalkit.curvature.halves import fisher_orthogonal
from evalkit.curvature.kfac import Sharing, kfac
from evalkit.curvature.kpsvd import kpsvd, shampoo
from evalkit.curvature.kronecker import Style
from evalkit.curvature.labels import Labels, Norm, Source
from evalkit.curvature.past import PastTask, past_task
from evalkit.curvature.projection import Form, Projected, projected
from evalkit.curvature.rows import block
from evalkit.curvature.second_term import FLOOR, deflation, kfac_corrected, lanczos
from evalkit.curvature.whitening import whitening

__all__ = [
    "FLOOR",
    "BlockMatrix",
    "Coarse",
    "Form",
    "Labels",
    "MatrixBlock",
    "Norm",
    "PastTask",
    "Preconditioned",
    "Projected",
    "Sharing",
    "Source",
    "Style",
    "block",
    "block_matrix",
    "deflation",
    "diagonal",
    "ekfac",
    "eva",
    "fisher_orthogonal",
    "kfac",
    "kfac_corrected",
    "kpsvd",
    "lanczos",
    "past_task",
    "preconditioned",
    "projected",
    "shampoo",
    "solved",
    "two_level",
    "whitening",
]
