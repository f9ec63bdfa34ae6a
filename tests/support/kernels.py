"""The tangent kernel as a matrix, which solvers need only in the roots of S."""

from __future__ import annotations

from torch import Tensor

from evalkit.linearization import Linearization
from evalkit.solvers.kernel import unit_cotangents


def tangent_kernel(lin: Linearization) -> Tensor:
    """Return J J^T, (N M, N M) float64, for M outputs per sample, in the order of the logits.

    It is the Gram matrix of J_n^T e_m for the unit vectors e_m of one sample's outputs.
    """
    units = unit_cotangents(lin)
    outputs, samples = units.shape[:2]
    # Rows of Gram matrices have the cotangent outside the sample, logits have it inside.
    matrix = lin.inner_products(units).view(outputs, samples, outputs, samples)
    return matrix.permute(1, 0, 3, 2).reshape(outputs * samples, -1)
