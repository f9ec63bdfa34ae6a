"""The tangent kernel J J^T as a matrix over all outputs of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from evalkit.linearization.gram import Side, gram_matrix, side
from evalkit.linearization.micro_batches import MicroBatches
from evalkit.linearization.per_sample import PerSample

MOST_OUTPUTS = 4096
"""Rows of the matrix, at most: 128 MiB."""


def tangent_kernel(batches: MicroBatches, route: PerSample | None) -> Tensor:
    """Return J J^T, (N M, N M) float64, for M outputs per sample, in the order of the logits.

    It is the Gram matrix of J_n^T e_m for the unit vectors e_m of one sample's outputs.

    Args:
        batches: the forward passes.
        route: one of :data:`evalkit.linearization.gram.ROUTES`.
    """
    units = unit_cotangents(batches)
    outputs, samples = units.shape[:2]
    matrix = gram_matrix(batches, units, route).view(outputs, samples, outputs, samples)
    size = outputs * samples
    return matrix.permute(1, 0, 3, 2).reshape(size, size)


def sample_products(
    batches: MicroBatches, cotangents: Tensor, route: PerSample | None, units: Side | None
) -> Tensor:
    """Return J J_n^T c_kn for each one-sample cotangent: (K N, N M) float64.

    Args:
        batches: the forward passes.
        cotangents: c, (K, N, ..., C) float64.
        route: one of :data:`evalkit.linearization.gram.ROUTES`.
        units: the units of :func:`unit_side`, which serves all cotangents.
    """
    vectors = unit_cotangents(batches)
    outputs, samples = vectors.shape[:2]
    matrix = gram_matrix(batches, cotangents, route, vectors, units)
    return matrix.view(-1, outputs, samples).transpose(1, 2).flatten(1)


def unit_side(batches: MicroBatches, route: PerSample | None) -> Side | None:
    """Return J_n^T e_m of every sample and output, as :func:`evalkit.linearization.gram.side`."""
    return side(batches, unit_cotangents(batches), route)


def unit_cotangents(batches: MicroBatches) -> Tensor:
    """Return the unit cotangents of every sample: (M, N, ..., C) float64."""
    samples, *shape = batches.logits.shape
    outputs = batches.logits[0].numel()
    units = torch.eye(outputs, dtype=torch.float64, device=batches.logits.device)
    return units.view(outputs, 1, *shape).expand(-1, samples, *[-1] * len(shape))


def gram_from_kernel(kernel: Tensor, cotangents: Tensor) -> Tensor:
    """Return the inner products of J_n^T c_kn, (K N, K N), from the tangent kernel.

    Args:
        kernel: J J^T, (N M, N M).
        cotangents: c, (K, N, ..., C) float64.
    """
    draws, samples = cotangents.shape[:2]
    c = cotangents.flatten(2)
    half = torch.einsum("knm,nmj->knj", c, kernel.view(samples, -1, len(kernel)))
    half = half.reshape(draws * samples, samples, -1)
    return torch.einsum("inm,knm->ikn", half, c).reshape(draws * samples, -1)
