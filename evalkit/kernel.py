"""The tangent kernel J J^T as a matrix over all outputs of a batch, and when forming it pays."""

from __future__ import annotations

import torch
from torch import Tensor

from evalkit.forward import Recording
from evalkit.gram import gram_matrix
from evalkit.layers.rows import pair_costs
from evalkit.micro_batches import MicroBatches
from evalkit.per_sample import PerSample

MOST_OUTPUTS = 4096
"""Rows of the matrix, at most: 128 MiB."""


PRODUCT_OVERHEAD = 4e7
"""Multiplications that take as long as the calls of one product on a small model do."""


def tangent_kernel(batches: MicroBatches, route: PerSample | None) -> Tensor:
    """Return J J^T, (N M, N M) float64, for M outputs per sample, in the order of the logits.

    It is the Gram matrix of J_n^T e_m for the unit vectors e_m of one sample's outputs.

    Args:
        batches: the forward passes.
        route: one of :data:`evalkit.gram.ROUTES`.
    """
    units = _units(batches)
    outputs, samples = units.shape[:2]
    matrix = gram_matrix(batches, units, route).view(outputs, samples, outputs, samples)
    size = outputs * samples
    return matrix.permute(1, 0, 3, 2).reshape(size, size)


def sample_products(batches: MicroBatches, cotangents: Tensor, route: PerSample | None) -> Tensor:
    """Return J J_n^T c_kn for each one-sample cotangent: (K N, N M) float64.

    Args:
        batches: the forward passes.
        cotangents: c, (K, N, ..., C) float64.
        route: one of :data:`evalkit.gram.ROUTES`.
    """
    units = _units(batches)
    outputs, samples = units.shape[:2]
    matrix = gram_matrix(batches, cotangents, route, units)
    return matrix.view(-1, outputs, samples).transpose(1, 2).flatten(1)


def _units(batches: MicroBatches) -> Tensor:
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


def kernel_pays(
    batches: MicroBatches, products: int, draws: int | None = None, extra: float = 0.0
) -> bool:
    """Return whether forming J J^T takes fewer multiplications than so many products with it.

    A pass through a layer with (in, out) weights and T positions takes N T in out; a product takes
    two such passes and the weight's part. Forming takes a pass for each of M outputs and the
    layer's part of the matrix, in float64, which counts twice. Layers that no trainable parameter
    takes part in cost both alike for each pass, and are left out: forming takes no more passes.

    Args:
        batches: the forward passes.
        products: number of products that would be done otherwise.
        draws: cotangents per sample that the matrix is formed for, None for all M outputs.
        extra: float64 multiplications that only the matrix needs.
    """
    samples, outputs = len(batches.logits), batches.logits[0].numel()
    columns = outputs if draws is None else draws
    if samples * outputs > MOST_OUTPUTS or outputs + columns > 2 * products:
        return False
    recording = batches[0].recording
    forming, product = 2 * extra, PRODUCT_OVERHEAD
    for use in recording.uses:
        groups, positions, inside, outside = use.layer.matrix_shape
        one_pass = samples * positions * groups * inside * outside
        weight = min(2 * one_pass, (samples * positions) ** 2 * groups * outside)
        shape = (groups, outputs, samples, positions, outside)
        other = (groups, columns, samples, positions, outside)
        forming += outputs * one_pass + 2 * min(pair_costs(shape, other, inside))
        product += 2 * one_pass + weight
    forming += 2 * samples**2 * outputs * columns * _unruled(recording)
    return forming < products * product


def _unruled(recording: Recording) -> int:
    """Return the number of parameters without a rule."""
    items = recording.parameters.items()
    return sum(value.numel() for name, value in items if name not in recording.ruled)
