"""Columns of the tangent kernel J J^T over all outputs of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from evalkit.evaluation.full_precision import full_precision
from evalkit.linearization import Linearization


@full_precision()
def sample_products(lin: Linearization, cotangents: Tensor) -> Tensor:
    """Return J J_n^T c_n for every one-sample cotangent: (N, N M) float64.

    M is the number of outputs of a sample.

    Args:
        lin: the model and batch.
        cotangents: c, (N, ..., C) float64.
    """
    units = unit_cotangents(lin)
    outputs, samples = units.shape[:2]
    # What the unit cotangents pull back to serves every other set of cotangents.
    matrix = lin.inner_products(cotangents.unsqueeze(0), units, "unit rows")
    return matrix.view(-1, outputs, samples).transpose(1, 2).flatten(1)


def unit_cotangents(lin: Linearization) -> Tensor:
    """Return the unit vectors of each sample's outputs as cotangents: (M, N, ..., C) float64."""
    return units_like(lin.logits)


def units_like(logits: Tensor) -> Tensor:
    """Return those of some logits."""
    samples, *shape = logits.shape
    outputs = logits[0].numel()
    units = torch.eye(outputs, dtype=torch.float64, device=logits.device)
    return units.view(outputs, 1, *shape).expand(-1, samples, *[-1] * len(shape))
