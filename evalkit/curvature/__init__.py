"""Structured approximations of the Fisher matrix, layer by layer.

From the ground up: ``labels`` says where cotangents come from, ``pulled`` what they pull back to,
``noise`` how far rounding moves it; ``eigen`` and ``rotated`` are second moments decomposed and
matrices in their bases; ``kronecker`` solves with B (x) A, ``rows`` with blocks as they
are, and ``kfac``, ``diagonal``, ``kpsvd`` and ``eva`` make a structure's blocks of a pull;
``direction`` puts the blocks together.
"""

from evalkit.curvature.diagonal import diagonal, ekfac
from evalkit.curvature.direction import BlockMatrix, Preconditioned, preconditioned
from evalkit.curvature.eva import eva
from evalkit.curvature.kfac import Sharing, kfac
from evalkit.curvature.kpsvd import kpsvd, shampoo
from evalkit.curvature.kronecker import Style
from evalkit.curvature.labels import Labels, Norm, Source
from evalkit.curvature.rows import block

__all__ = [
    "BlockMatrix",
    "Labels",
    "Norm",
    "Preconditioned",
    "Sharing",
    "Source",
    "Style",
    "block",
    "diagonal",
    "ekfac",
    "eva",
    "kfac",
    "kpsvd",
    "preconditioned",
    "shampoo",
]
